"""Write the records of a small run by hand, sealed as a stage seals them."""

import json
from pathlib import Path

import numpy as np

from mobilebert.jobs.record import sealed

SCORE = "finetune/mobilebert/sst2:accuracy"
LOSS = "pretrain/ib-bert-large:heldout_mlm_loss"
RATIO = "latency:mobilebert/pytorch:p50_ms / latency:bert-base/pytorch:p50_ms"
MODULES = {"mobilebert.stages.finetune": "0123456789abcdef"}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0"}
MACHINE = {"cores": 2, "arch": "x86_64", "load": 0.5, "cpu": "a processor"}


def write(folder: Path, key: str, config: dict, metrics: dict, inputs=(), **fields) -> Path:
    """Write a record of one job and return its path."""
    stage, _, name = key.partition("/")
    content = {"schema": 1, "study": "smoke", "stage": stage, "name": name, "status": "ok", "fingerprint": "f", "config": config}
    content |= {"inputs": dict.fromkeys(inputs, "f"), "metrics": metrics, "versions": VERSIONS, "machine": MACHINE}
    path = folder / key / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sealed(content | {"modules": MODULES} | fields)))
    return path


def write_run(folder: Path, seed=0, accuracy=0.9, loss=3.0, ratio=2.0, samples=None, rate=1e-3) -> Path:
    """Write a run: data, a teacher, a fine-tuned student and a latency; return its folder."""
    details = {"files": {"synthetic/sst2": "aa"}, "vocab": "bb", "rows": {"sst2": {"train": 800}}}
    write(folder, "data", {"seed": 0, "source": "synthetic"}, {"vocab_size": 600}, details=details)
    teacher = "pretrain/ib-bert-large"
    write(folder, teacher, {"seed": seed, "steps": 240}, {"heldout_mlm_loss": loss}, ["data"])
    tuned = {"learning_rate": rate, "seeds": [seed], "task": "sst2"}
    values = {"accuracy": samples or [accuracy]}
    write(folder, "finetune/mobilebert/sst2", tuned, {"accuracy": accuracy}, ["data", teacher], samples=values)
    times = {"mobilebert/pytorch:p50_ms": 2.0 * ratio, "bert-base/pytorch:p50_ms": 2.0}
    write(folder, "latency", {"length": 64}, times)
    return folder


def rewrite(path: Path, seal=True, **fields) -> None:
    """Change fields of a record; without `seal` as somebody who edits it by hand."""
    content = {key: value for key, value in json.loads(path.read_text()).items() if seal is False or key != "checksum"} | fields
    path.write_text(json.dumps(sealed(content) if seal else content))


def values(seed: int) -> dict:
    """Return the metrics of a seed of the unchanged experiment."""
    draws = np.random.default_rng(seed).normal(size=3)
    return {"accuracy": 0.9 + 0.01 * draws[0], "loss": 3 + 0.02 * draws[1], "ratio": 2 + 0.02 * draws[2]}
