"""Run the GPU programs to their end with narrow models on the CPU.

They must write what they promise; figures come from a GPU alone.
"""

import json
import weakref
from types import SimpleNamespace

import gpu
import gpu_finetuning
import gpu_inference
import gpu_training
import numpy as np
import pytest
import torch


def report(program, monkeypatch, tmp_path, *arguments):
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["program", *arguments, "--tiny", "--rounds", "1", "--out", str(out)])
    program.main()
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("what", "versions"),
    [
        ("student", ["transformers, sdpa", "ours, eager"]),
        ("transfer", ["layer 2: plain", "layer 2: ours, eager"]),
    ],
)
def test_training(what, versions, monkeypatch, tmp_path):
    found = report(gpu_training, monkeypatch, tmp_path, what, "--steps", "6", "--versions", *versions)
    assert found["device"].startswith("cpu (tiny: not a measurement)")
    assert list(found["versions"]) == versions
    for one in found["versions"].values():
        assert [len(seconds) for seconds in one["seconds"]] == [6]
        assert min(one["seconds"][0]) > 0
        assert one["tokens_per_second"] == pytest.approx(found["tokens_per_step"] / one["median_seconds"])


def test_inference(monkeypatch, tmp_path):
    found = report(
        gpu_inference, monkeypatch, tmp_path, "encoder", "--steps", "6", "--versions", "ours, folded, eager", "BERT_BASE, eager"
    )
    assert len(found["versions"]) == 2
    assert all(one["median_seconds"] > 0 for one in found["versions"].values())


def test_finetuning(monkeypatch, tmp_path):
    task, lengths = "squad_v1.1", np.arange(5, 45)
    targets = {"start_positions": lengths // 4, "end_positions": lengths // 2}
    arrays = {
        "bounds": np.cumsum([0, *lengths]),
        "ids": np.arange(lengths.sum()) % 30_000,
        "types": np.zeros(lengths.sum(), np.int8),
    }
    arrays |= {f"targets/{name}": values for name, values in targets.items()}
    np.savez(tmp_path / "examples.npz", **{f"{task}/{name}": values for name, values in arrays.items()})
    found = report(gpu_finetuning, monkeypatch, tmp_path, task, "--examples", str(tmp_path / "examples.npz"))
    assert not found["errors"]
    assert found["rows"] == gpu_finetuning.TINY_ROWS
    assert [len(seconds) for seconds in found["seconds"].values()] == [1, 1, 1]


def test_a_version_runs_alone_in_memory_and_its_figures_are_written_at_once(tmp_path):
    """The second version fails in both rounds. It checks that the first one's model is freed and
    that its figures are written."""
    options = SimpleNamespace(batch=1, length=8, device="cpu", versions=None, rounds=2, steps=6, out=tmp_path / "out.json")
    made, seen = [], []

    def first():
        model = torch.nn.Linear(1, 1)
        made.append(weakref.ref(model))
        return lambda steps: ([float(index + 1 + model.in_features) for index in range(steps)], {})

    def second():
        seen.append((made[-1]() is None, json.loads(options.out.read_text())["versions"]["first"]["median_seconds"]))
        raise ValueError("no room")

    found = gpu.measure({"first": first, "second": second}, options)
    assert seen == [(True, 6.5)]  # the median of steps 5 and 6
    assert found["second"]["error"] == "ValueError: no room"
    assert len(made) == len(found["first"]["seconds"]) == 2
    assert found["first"]["warmup_seconds"] == 2 + 3 + 4 + 5


@pytest.mark.parametrize(("program", "what"), [(gpu_training, "student"), (gpu_inference, "encoder")])
def test_the_programs_measure_nothing_without_a_gpu(program, what, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["program", what, "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
