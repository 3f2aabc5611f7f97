"""Check options that several commands have, and set what libraries read at import."""

from __future__ import annotations

import argparse
import os


def positive(text: str) -> int:
    """Return a positive integer, for argparse. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def prepare_environment(threads: int) -> None:
    """Set the number of threads and silence progress bars; torch reads both once, at import."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # we show our own progress bar
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # fine-tuning always begins with a new head
