"""Judge the paper's claims on what a study measured."""
