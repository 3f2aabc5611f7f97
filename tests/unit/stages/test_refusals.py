"""Checkpoints and models that cannot be trained are refused in one line, before any step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from mobilebert.cli.main import main
from mobilebert.jobs.record import read_record
from mobilebert.pretraining import objective
from mobilebert.pretraining.common import corpus_of
from mobilebert.study.architecture import architecture
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

MINI = Path(__file__).parents[2] / "workflow" / "mini.yaml"


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 500), ("max_position_embeddings", 40), ("num_hidden_layers", 3), ("hidden_size", 32)]
)
def test_a_checkpoint_of_another_form_is_refused(tmp_path, capsys, field, value):
    """Its vocabulary, positions, depth or width differs."""
    wanted = architecture(load_study(MINI), "mobilebert")
    objective.new_model({**wanted, field: value}).save_pretrained(tmp_path / "weights")
    sha256 = file_sha256(tmp_path / "weights/model.safetensors")
    content = yaml.safe_load(MINI.read_text()) | {
        "checkpoints": {"mobilebert": {"source": f"{tmp_path}/weights", "sha256": sha256}}
    }
    study = tmp_path / "mine.yaml"
    study.write_text(yaml.safe_dump(content))
    assert main(["checkpoint", "mobilebert", "--study", str(study), "--results", str(tmp_path / "results")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == (f"mobilebert: checkpoints.mobilebert: {tmp_path}/weights has {field} {value}, the row needs {wanted[field]}")


@pytest.mark.parametrize("row", ["mobilebert", "bert-base", "ib-bert-large"])
@pytest.mark.parametrize("type_", [torch.float32, torch.float16])
def test_a_rows_checkpoint_is_taken_whole_as_float32(tmp_path, capsys, row, type_):
    wanted = architecture(load_study(MINI), row)
    saved = objective.new_model(wanted).to(type_)
    saved.save_pretrained(tmp_path / "weights")
    weights = {"source": f"{tmp_path}/weights", "sha256": file_sha256(tmp_path / "weights/model.safetensors")}
    study = tmp_path / "mine.yaml"
    study.write_text(yaml.safe_dump(yaml.safe_load(MINI.read_text()) | {"checkpoints": {row: weights}}))
    assert main(["checkpoint", row, "--study", str(study), "--results", str(tmp_path / "results")]) == 0, capsys.readouterr().err
    (record,) = (tmp_path / "results").rglob("result.json")
    assert read_record(record).weights_dtype == {weights["source"]: str(type_).removeprefix("torch.")}
    found = objective.load_model(record.parent / "model", wanted).state_dict()
    assert all(torch.equal(value.float(), found[key]) for key, value in saved.state_dict().items())
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.float32}


def test_cuda_out_of_memory_is_a_one_line_error_and_keeps_the_state(tmp_path, capsys, monkeypatch):
    errors = [RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it")]

    def full(run, study):
        (run.state / "train.safetensors").write_bytes(b"of before")
        raise errors.pop()

    command = ["pretrain", "ib-bert-large", "--study", str(MINI), "--results", str(tmp_path)]
    monkeypatch.setattr("mobilebert.stages.pretrain.main", full)
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "mobilebert: CUDA out of memory. Tried to allocate 2.00 GiB; pretrain.accumulate makes smaller parts of a batch\n"
    )
    assert [file.read_bytes() for file in tmp_path.rglob("train.safetensors")] == [b"of before"]
    with pytest.raises(RuntimeError, match="a bug"):  # no other error is hidden
        main(command)
    for name, key in (("search-a", "search"), ("scratch", "distill")):  # these are pre-trained with the settings of other groups
        errors.append(torch.OutOfMemoryError("CUDA out of memory."))
        assert main(["pretrain", name, *command[2:]]) == 2
        assert capsys.readouterr().err == f"mobilebert: CUDA out of memory; {key}.accumulate makes smaller parts of a batch\n"


def test_a_tokenizer_that_the_model_cannot_hold_is_refused():
    run = SimpleNamespace(
        record_of=lambda key: SimpleNamespace(metrics={"vocab_size": 700.0}),
        settings=lambda kind: kind.model_construct(architecture={"vocab_size": 600}),
    )
    with pytest.raises(UserError, match=r"^vocab_size: the tokenizer has 700 entries, the model 600$"):
        corpus_of(run)
