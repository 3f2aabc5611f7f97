"""The GPU programs run to their end and write what they promise, with narrow models on the CPU: figures come from a GPU alone."""

import json

import gpu_inference
import gpu_training
import pytest


def report(program, monkeypatch, tmp_path, *arguments):
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["program", *arguments, "--tiny", "--rounds", "1", "--steps", "3", "--out", str(out)])
    program.main()
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("what", "versions"),
    [
        ("student", ["transformers, sdpa", "ours, eager"]),
        ("teacher", ["plain", "ours, eager"]),
        ("transfer", ["layer 2: plain", "layer 2: ours, eager"]),
        ("distill", ["plain", "ours, eager"]),
    ],
)
def test_training(what, versions, monkeypatch, tmp_path):
    found = report(gpu_training, monkeypatch, tmp_path, what, "--versions", *versions)
    assert found["device"].startswith("cpu (tiny: not a measurement)")
    assert list(found["versions"]) == versions
    for one in found["versions"].values():
        assert [len(seconds) for seconds in one["seconds"]] == [3]
        assert min(one["seconds"][0]) > 0
        assert one["tokens_per_second"] == pytest.approx(found["tokens_per_step"] / one["median_seconds"])


def test_inference(monkeypatch, tmp_path):
    found = report(gpu_inference, monkeypatch, tmp_path, "encoder", "--versions", "ours, folded, eager", "BERT_BASE, eager")
    assert len(found["versions"]) == 2
    assert all(one["median_seconds"] > 0 for one in found["versions"].values())


@pytest.mark.parametrize(("program", "what"), [(gpu_training, "student"), (gpu_inference, "encoder")])
def test_without_a_gpu_they_measure_nothing(program, what, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["program", what, "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
