"""Two gloo processes learn what one process with the same global batch learns, and can be killed and continued.

python tests/long/parallel.py
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from forked import Runs, mini
from safetensors.torch import load_file

from mobilebert import records

KEY = "pretrain/mobilebert-bare"  # a model without dropout
STEPS = 20


def learnt(runs: Runs) -> dict:
    return load_file(records.folder(runs.results, "mini", runs.graph[KEY]) / "model" / "model.safetensors")


def differences(one: dict, other: dict) -> tuple[float, float]:
    """||a - b|| / ||a|| of all the weights together, and the largest of a single matrix.

    Not of a single bias: that of the keys has no gradient but rounding, softmax being blind to it.
    """
    assert one.keys() == other.keys()
    squares = {key: ((one[key] - other[key]).square().sum().item(), one[key].square().sum().item()) for key in one}
    whole = sum(value for value, _ in squares.values()) / sum(value for _, value in squares.values())
    matrices = max(value / norm for key, (value, norm) in squares.items() if one[key].dim() == 2)
    return whole**0.5, matrices**0.5


def together(runs: Runs, kill_after_steps: int | None = None) -> None:
    """A run by two processes, or one that loses both when so many steps are done."""
    pids = runs.start_group(KEY, 2)
    if kill_after_steps is None:
        for pid in pids:
            runs.wait(KEY, pid)
        return
    while runs.progress(KEY)[0] < kill_after_steps:
        time.sleep(0.002)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def compare(folder: Path, optimizer: str, accumulate: int) -> str:
    settings = {"steps": STEPS, "warmup_steps": 2, "batch_size": 8, "length": 24, "learning_rate": 3e-3}
    runs = Runs(mini(**settings, optimizer=optimizer, accumulate=accumulate, checkpoint_every=3), folder)
    runs.finish("data")
    runs.finish(KEY)
    alone, curves = learnt(runs), runs.record(KEY).curves
    runs.forget(KEY)
    together(runs)
    pair, record = learnt(runs), runs.record(KEY)
    whole, matrix = differences(alone, pair)
    assert 0 < whole < 1e-5, whole  # the sums are rounded in another order; the same to the bit would be no second process
    assert matrix < 1e-5, matrix
    for key, points in curves.items():
        for (step, value), (other_step, other) in zip(points, record.curves[key], strict=True):
            assert step == other_step
            assert abs(value - other) < 1e-5 * value, (key, step, value, other)
    runs.forget(KEY)
    together(runs, kill_after_steps=8)
    assert runs.progress(KEY)[1] >= 6
    together(runs)
    assert runs.outcome(KEY) == (record.artefacts["model/model.safetensors"], record.metrics, record.curves)
    runs.forget(KEY)
    return f"two processes differ from one by {whole:.1e}, in a matrix by at most {matrix:.1e}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for optimizer, accumulate in (("lamb", 1), ("adamw", 2)):
            print(f"{optimizer}, accumulate {accumulate}: {compare(Path(folder), optimizer, accumulate)}", flush=True)


if __name__ == "__main__":
    main()
