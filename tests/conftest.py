import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real GLUE, SQuAD and corpus files; tests that need it are skipped, with this reason, where it is not."""
    folder = Path(os.environ.get("MOBILEBERT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "SHA256SUMS").is_file():
        pytest.skip(f"no real data in {folder} (set MOBILEBERT_DATA)")
    return folder
