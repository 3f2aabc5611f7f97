"""Check that two gloo processes learn the same as one process with the same global batch.

They can also be killed and resumed.

python tests/long/parallel.py [2]     all cases, or the first two
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from forked import Runs, mini
from safetensors.torch import load_file

from mobilebert.jobs.freshness import record_folder
from mobilebert.study.graph import with_upstream

STEPS = 20


def learnt(runs: Runs, key: str) -> dict:
    return load_file(record_folder(runs.results, "mini", runs.graph[key]) / "model" / "model.safetensors")


def differences(one: dict, other: dict) -> tuple[float, float]:
    """Return a - b / a of all weights together, and the largest of a single matrix. Single biases
    do not count: the bias of the keys has no gradient but rounding, since softmax ignores it."""
    assert one.keys() == other.keys()
    squares = {key: ((one[key] - other[key]).square().sum().item(), one[key].square().sum().item()) for key in one}
    whole = sum(value for value, _ in squares.values()) / sum(value for _, value in squares.values())
    matrices = max(value / norm for key, (value, norm) in squares.items() if one[key].dim() == 2)
    return whole**0.5, matrices**0.5


def together(runs: Runs, key: str, kill_after_steps: int | None = None) -> None:
    """Run a job by two processes; kill both after `kill_after_steps` steps, if given."""
    pids = runs.start_group(key, 2)
    if kill_after_steps is None:
        for pid in pids:
            runs.wait(key, pid)
        return
    runs.wait_until(key, pids[0], lambda: runs.progress(key)[0] >= kill_after_steps)  # its state is gone once it ends
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def compare(folder: Path, key: str, optimizer: str, accumulate: int, with_kill: bool) -> str:
    settings = {"steps": STEPS, "warmup_steps": 2, "batch_size": 8, "length": 24, "learning_rate": 3e-3}
    runs = Runs(mini(**settings, optimizer=optimizer, accumulate=accumulate, checkpoint_every=3), folder)
    for made in with_upstream(runs.graph, [key]):
        if not runs.is_recorded(made):
            runs.finish(made)
    alone, curves = learnt(runs, key), runs.record(key).curves
    runs.forget(key)
    together(runs, key)
    pair, record = learnt(runs, key), runs.record(key)
    whole, matrix = differences(alone, pair)
    assert 0 < whole < 1e-5, whole  # sums are rounded in another order; equal bits would mean no second process
    assert matrix < 1e-5, matrix
    total = dict(curves["train_loss"])
    for name, points in curves.items():
        for (step, value), (other_step, other) in zip(points, record.curves[name], strict=True):
            assert step == other_step
            # Compare a component with the whole loss: a divergence of 0.004 is the difference of
            # two sums of 6.
            assert abs(value - other) < 1e-5 * total.get(step, value), (name, step, value, other)
    if not with_kill:
        return f"two processes differ from one by {whole:.1e}, in a matrix by at most {matrix:.1e}"
    runs.forget(key)
    together(runs, key, kill_after_steps=8)
    assert runs.progress(key)[1] >= 6
    together(runs, key)
    assert runs.outcome(key) == (record.artefacts["model/model.safetensors"], record.metrics, record.curves)
    return f"two processes differ from one by {whole:.1e}, in a matrix by at most {matrix:.1e}; killed and continued: the same"


CASES = (
    ("pretrain/ib-bert-large", "adamw", 2),  # with dropout
    ("transfer/mobilebert", "lamb", 2),
    ("pretrain/bert-base", "lamb", 1),  # with dropout
    ("pretrain/mobilebert-bare", "adamw", 2),
    ("pretrain/mobilebert-bare", "lamb", 1),
    ("distill/mobilebert-akt", "lamb", 1),
)


def main() -> None:
    for place, (key, optimizer, accumulate) in enumerate(CASES[: int(sys.argv[1]) if sys.argv[1:] else None]):
        with tempfile.TemporaryDirectory() as folder:
            found = compare(Path(folder), key, optimizer, accumulate, with_kill=place == 0)
        print(f"{key}, {optimizer}, accumulate {accumulate}: {found}", flush=True)


if __name__ == "__main__":
    main()
