"""The order of a model's classes, from the names in its checkpoint."""

import json
import shutil

import pytest
from scored_models import add_tokenizer, onnx_folder, refused, run

from mobilebert.cli.main import main
from mobilebert.study.tasks import TASKS


def test_class_names_of_a_checkpoint_decide_their_order(data, checkpoints, tmp_path, capsys):
    """A checkpoint that orders its classes otherwise than the benchmark means the same classes."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["mobilebert-3"], folder)
    rows = ("--task", "mnli", "--text", "red dog", "--text-pair", "green cat on mat")
    plain = json.loads(run(capsys, "predict", folder, *rows))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "CONTRADICTION", "1": "ENTAILMENT", "2": "NEUTRAL"}
    config["label2id"] = {name: int(code) for code, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    named = json.loads(run(capsys, "predict", folder, *rows))
    places = {"contradiction": "entailment", "entailment": "neutral", "neutral": "contradiction"}
    for name, place in places.items():
        assert named[f"probability_{name}"] == pytest.approx(plain[f"probability_{place}"])
    assert named["label"] == max(places, key=lambda name: named[f"probability_{name}"])
    assert TASKS["mnli"].labels[named["prediction"]] == named["label"]
    said = "its classes are sad, glad, so-so; taken in this order for entailment, neutral, contradiction of mnli"
    del config["label2id"]
    for names, expected in ((config["id2label"], False), ({"0": "sad", "1": "glad", "2": "so-so"}, True)):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
        assert main(["predict", str(folder), *rows]) == 0
        assert (said in capsys.readouterr().err) is expected


NAMES = ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
PLACEHOLDERS = {f"LABEL_{code}": code for code in range(3)}


@pytest.mark.parametrize(
    "maps",
    [
        {"label2id": {name: code for code, name in enumerate(NAMES)}},
        {"label2id": {name: code for code, name in enumerate(NAMES)}, "id2label": {v: k for k, v in PLACEHOLDERS.items()}},
        {"id2label": dict(enumerate(NAMES)), "label2id": PLACEHOLDERS},
        {"id2label": {0: "LABEL_2", 1: "LABEL_0", 2: "LABEL_1"}},
        {"id2label": {0: "2", 1: "0", 2: "1"}},
    ],
)
@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_either_map_of_class_names_decides_the_order(maps, kind, checkpoints, tmp_path, capsys):
    folder = tmp_path / "model"
    if kind == "onnx":
        onnx_folder(checkpoints["mobilebert-3"], "mobilebert-3", folder)
        (folder / "model.int8.onnx").unlink()
        (folder / "other.onnx").rename(folder / "model.int8.onnx")
        add_tokenizer(folder)
    else:
        shutil.copytree(checkpoints["mobilebert-3"], folder)
    values = json.loads((checkpoints["mobilebert-3"] / "config.json").read_text())
    values = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
    rows = ("--task", "mnli", "--text", "red dog", "--text-pair", "green cat on mat")
    plain = json.loads(run(capsys, "predict", checkpoints["mobilebert-3"], *rows))
    (folder / "config.json").write_text(json.dumps(values | maps))
    named = json.loads(run(capsys, "predict", folder, *rows))
    places = {"contradiction": "entailment", "entailment": "neutral", "neutral": "contradiction"}
    for name, place in places.items():  # the plain model's columns are entailment, neutral, contradiction
        assert named[f"probability_{name}"] == pytest.approx(plain[f"probability_{place}"], abs=1e-5)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 1, "positive": 0}}, "contradict each other"),
        ({"id2label": {0: "negative", 1: "positive"}, "label2id": {"sad": 0, "glad": 1}}, "contradict each other"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1, "c": 2}}, "contradict each other"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label in config.json does not number its classes 0 to 1"),
        ({"id2label": {0: "a", 1: "a"}}, "gives two classes one name"),
        ({"label2id": {"a": 0, "b": 0}}, "does not number its classes"),
        ({"label2id": {"a": True, "b": 0}}, "does not number its classes"),
        ({"label2id": ["a", "b"]}, "label2id in config.json must be a JSON object of class names"),
        ({"id2label": {0: "a", 1: "b"}, "num_labels": 3}, "num_labels in config.json is 3, but 2 classes have names"),
    ],
)
def test_invalid_or_contradictory_class_names_are_refused(maps, message, checkpoints, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["mobilebert-2"], folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | maps))
    assert message in refused(capsys, "predict", folder, "--task", "sst2", "--text", "red")
