import math
import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real GLUE, SQuAD and corpus files; tests that need it are skipped, with this reason, where it is not."""
    folder = Path(os.environ.get("MOBILEBERT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "SHA256SUMS").is_file():
        pytest.skip(f"no real data in {folder} (set MOBILEBERT_DATA)")
    return folder


@pytest.fixture(autouse=True)
def states_by_steps_alone(monkeypatch):
    """A test that says after which steps a run saves itself holds on a slow machine too; `test_pace` has a clock of its own."""
    if module := sys.modules.get("mobilebert.training.checkpoint"):
        monkeypatch.setattr(module, "LEAST_SECONDS", math.inf)
