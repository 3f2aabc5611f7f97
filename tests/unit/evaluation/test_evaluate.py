"""`mobilebert evaluate` of any checkpoint or int8 file, against single rows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scored_models import ROWS, VOCABULARY, add_tokenizer, logits_of, onnx_folder, refused, run
from sklearn.metrics import accuracy_score

from mobilebert.cli.main import main
from mobilebert.study.tasks import TASKS


@pytest.mark.parametrize(
    ("name", "task"),
    [("mobilebert-2", "sst2"), ("bert", "sst2"), ("distilbert", "sst2"), ("mobilebert-3", "mnli"), ("mobilebert-1", "stsb")],
)
def test_evaluate_is_the_score_of_the_models_own_outputs(name, task, data, checkpoints, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    result = json.loads(run(capsys, "evaluate", checkpoints[name], "--task", task, "--data", data, "--predictions", out))
    kept = pd.read_parquet(out)
    for split, prefix in (("validation", ""), ("validation_mismatched", "mismatched_")):
        if split not in TASKS[task].splits:
            continue
        frame = pd.read_parquet(data / TASKS[task].folder / f"{TASKS[task].splits[split]}.parquet")
        logits = logits_of(checkpoints[name], name, frame, TASKS[task].text_columns)
        mine = kept[kept["split"] == split]
        assert mine["idx"].tolist() == frame["idx"].tolist()
        if task == "stsb":
            assert mine["prediction"].to_numpy() == pytest.approx(np.clip(logits[:, 0], 0, 5), abs=1e-4)
        else:
            assert len(np.unique(logits.argmax(1))) > 1
            assert mine["prediction"].tolist() == logits.argmax(1).tolist()
            assert result[f"{prefix}accuracy"] == pytest.approx(100 * accuracy_score(frame["label"], logits.argmax(1)))
    again = json.loads(run_score(capsys, task, data, out))
    assert again.pop("rows") == result.pop("rows")
    assert again.pop("labels") == result.pop("labels")
    assert again == pytest.approx(result)


def run_score(capsys, task, data, path):
    assert main(["score", "--task", task, "--data", str(data), "--predictions", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("task", ["squad_v1.1", "squad_v2.0"])
def test_evaluate_squad_and_its_official_file(task, data, checkpoints, tmp_path, capsys):
    given = ("evaluate", checkpoints["mobilebert-qa"], "--task", task, "--data", data, "--predictions")
    official = json.loads(run(capsys, *given, tmp_path / "p.json"))
    result = json.loads(run(capsys, *given, tmp_path / "p.parquet"))
    assert official == result
    assert json.loads(run_score(capsys, task, data, tmp_path / "p.parquet")) == result
    scored = json.loads(run_score(capsys, task, data, tmp_path / "p.json"))
    assert scored == {key: result[key] for key in scored}
    assert set(json.loads((tmp_path / "p.json").read_text())) == {f"q{row}" for row in range(ROWS)}
    assert ("best_f1_thresh" in result) == (task == "squad_v2.0")


RECORD = {
    "schema": 1, "study": "s", "stage": "finetune", "name": "m/sst2", "status": "ok", "fingerprint": "f", "inputs": {},
    "config": {},
}  # fmt: skip


def test_files_beside_an_onnx_file_are_read(checkpoints, tmp_path, capsys):
    """vocab.txt and config.json are read. Class names in config.json decide the order, as in a
    checkpoint; a row longer than the model's positions is refused."""
    folder = onnx_folder(checkpoints["mobilebert-3"], "mobilebert-3", tmp_path / "model")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    config = json.loads((checkpoints["mobilebert-3"] / "config.json").read_text())
    config["id2label"] = {"0": "CONTRADICTION", "1": "ENTAILMENT", "2": "NEUTRAL"}
    config["label2id"] = {name: int(code) for code, name in config["id2label"].items()}
    rows = ("--task", "mnli", "--text", "red dog", "--text-pair", "green cat on mat")
    plain = json.loads(run(capsys, "predict", checkpoints["mobilebert-3"], *rows))
    assert "no tokenizer" in refused(capsys, "predict", folder / "other.onnx", *rows)
    (folder / "config.json").write_text(json.dumps(config))
    named = json.loads(run(capsys, "predict", folder / "other.onnx", *rows))
    assert named["probability_entailment"] == pytest.approx(plain["probability_neutral"], abs=1e-5)
    (folder / "config.json").write_text("[]")
    assert "config.json holds no JSON object" in refused(capsys, "predict", folder / "other.onnx", *rows)
    (folder / "config.json").unlink()
    add_tokenizer(folder)
    long = ("--task", "mnli", "--text", "red " * 120, "--text-pair", "red")
    assert "other.onnx: does not run on 1 x 124 tokens" in refused(capsys, "predict", folder / "other.onnx", *long)


def test_int8_models_are_evaluated_from_a_folder_or_a_file(data, checkpoints, tmp_path, capsys):
    """The tokenizer lies beside the file, or is the study's if the file is in a study's results."""
    folder = onnx_folder(checkpoints["mobilebert-2"], "mobilebert-2", tmp_path / "study/quantize/mobilebert/sst2")
    given = ("--task", "sst2", "--data", data)
    assert "no tokenizer" in refused(capsys, "evaluate", folder, *given)
    (tmp_path / "study/data/tokenizer").mkdir(parents=True)
    add_tokenizer(tmp_path / "study/data/tokenizer")
    assert "no tokenizer" in refused(capsys, "evaluate", folder, *given)  # no study wrote this file, so its vocabulary is unknown
    (folder / "result.json").write_text(json.dumps(RECORD))
    result = json.loads(run(capsys, "evaluate", folder, *given, "--predictions", tmp_path / "p.parquet"))
    assert json.loads(run(capsys, "evaluate", folder / "model.int8.onnx", *given)) == result
    assert json.loads(run_score(capsys, "sst2", data, tmp_path / "p.parquet")) == result
    assert json.loads(run(capsys, "evaluate", folder / "other.onnx", *given)) == json.loads(
        run(capsys, "evaluate", checkpoints["mobilebert-2"], *given)
    )
    assert "its head has 2 labels, mnli has 3" in refused(capsys, "evaluate", folder, "--task", "mnli", "--data", data)
    assert "squad_v1.1 needs start_logits" in refused(capsys, "evaluate", folder, "--task", "squad_v1.1", "--data", data)


def test_a_study_model_keeps_its_lengths(checkpoints, tmp_path, capsys):
    """Four tokens leave only two words: later words change nothing if the record is there."""
    shutil.copytree(checkpoints["mobilebert-2"], tmp_path / "finetune/model")
    (tmp_path / "finetune/result.json").write_text('{"accuracy": 0.5}')  # not a record
    texts = ("red dog", "red dog . on the mat who ? blue")

    def shares(folder):
        rows = [run(capsys, "predict", folder, "--task", "sst2", "--text", text) for text in texts]
        return [json.loads(row)["probability_positive"] for row in rows]

    first, second = shares(tmp_path / "finetune")
    assert first != second
    (tmp_path / "finetune/result.json").write_text(json.dumps(RECORD | {"config": {"task": "sst2", "length": 4}}))
    first, second = shares(tmp_path / "finetune")
    assert first == second
