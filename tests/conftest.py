import math
import os
import sys
from pathlib import Path

import pytest

from mobilebert.cli.options import log_to_stderr

THREADS = os.environ.get("OMP_NUM_THREADS")  # the run's own


@pytest.fixture(scope="session", autouse=True)
def warnings_are_printed_as_by_a_command():
    """Print the package's warnings to stderr from the first test on, whichever runs first."""
    log_to_stderr()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real GLUE, SQuAD and corpus files; skip the test if there is none."""
    folder = Path(os.environ.get("MOBILEBERT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "SHA256SUMS").is_file():
        pytest.skip(f"no real data in {folder} (set MOBILEBERT_DATA)")
    return folder


@pytest.fixture(autouse=True)
def states_by_steps_alone(monkeypatch):
    """Save states by steps alone, never by the clock. A test that says after which steps a job
    saves its state then holds on a slow machine too. `test_pace` has its own clock."""
    if module := sys.modules.get("mobilebert.training.checkpoint"):
        monkeypatch.setattr(module, "LEAST_SECONDS", math.inf)


@pytest.fixture(autouse=True)
def threads_stay_as_they_were(monkeypatch):
    """Restore the numbers of threads that a command sets; later tests would compute with them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        before = os.environ.get(name)
        monkeypatch.setenv(name, before or "1")
        if before is None:
            monkeypatch.delenv(name)
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(THREADS or os.cpu_count()))
