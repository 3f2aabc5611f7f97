"""`mobilebert publish`: cards in the hub's format, a dry run, and an upload to a faked hub."""

import hashlib
import json
import math
import re
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, constants

from mobilebert.cli.main import main
from mobilebert.deployment.quantized_files import FILES
from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import read_record, sealed
from mobilebert.publishing.card import card
from mobilebert.publishing.checkpoint import Checkpoint
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study

SCORE, TEACHER = "finetune/mobilebert/sst2", "pretrain/ib-bert-large"
LABELS = ["synthetic: generated data", "scaled: widths / 8", "corpus: half of it"]


def write(results, graph, key, **fields):
    """Write a record that is current in the graph, and a checkpoint beside it."""
    job = graph[key]
    folder = record_folder(results, "mine", job)
    (folder / "model").mkdir(parents=True)
    files = {} if "artefacts" in fields else {"model/config.json": b"{}", "model/model.safetensors": key.encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    artefacts = {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": 9} for name, content in files.items()}
    content = {"schema": 1, "study": "mine", "stage": job.stage, "name": job.name, "status": "ok", "config": job.config}
    content |= {"fingerprint": job.fingerprint, "inputs": {item: graph[item].fingerprint for item in job.inputs}}
    content |= {"artefacts": artefacts, "machine": {"cpu": "a | b"}, "started": "2020-01-01T00:00:00+00:00", "commit": "c" * 40}
    (folder / "result.json").write_text(json.dumps(sealed(content | fields)))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with a study, its data, a teacher and a student of three seeds."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    study = {"description": "d", "data": {"source": "synthetic"}, "run": {"mobilebert": ["sst2"]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study | {"finetune": {"search": "none", "seeds": [0, 1, 2]}}))
    graph = build_graph(load_study("mine.yaml"))
    split = {"tasks/sst2/train.parquet": {"sha256": "a" * 64, "bytes": 9}}
    write(tmp_path / "results", graph, "data", artefacts=split)
    write(tmp_path / "results", graph, TEACHER, metrics={"heldout_mlm_loss": 3.5, "unigram_entropy": 5.0})
    details = {"seeds": [0, 1, 2], "best_seed": 2, "statuses": ["ok"] * 3}
    samples = {"accuracy": [0.7, 0.8, 0.9]}
    metrics = {"accuracy": 0.8, "majority": 0.5}
    write(tmp_path / "results", graph, SCORE, metrics=metrics, samples=samples, details=details, labels=LABELS)
    return tmp_path


def rewrite(path, **fields):
    content = json.loads(path.read_text()) | fields
    content.pop("checksum")
    path.write_text(json.dumps(sealed(content)))


def published(*words) -> int:
    return main(["publish", *words, "--study", "mine.yaml"])


def test_a_card_is_one_that_the_hub_reads_and_says_what_was_measured(place, capsys):
    assert published(SCORE, "--cards", "cards") == 0
    printed, text = capsys.readouterr().out, (place / "cards/mine-mobilebert-sst2.md").read_text()
    assert text in printed
    read = ModelCard(text)
    (result,) = read.data.eval_results
    assert (result.metric_type, result.metric_value, result.metric_name) == ("accuracy", 0.8, "accuracy, median of 3 seeds")
    assert (result.dataset_type, result.dataset_split, result.verified) == ("generated", "validation", False)
    assert read.data.tags == ["mobilebert", "synthetic", "scaled", "corpus"]
    assert read.data.to_dict()["pipeline_tag"] == "text-classification"
    assert read.data.datasets is None
    assert "| accuracy | 0.8000 | 0.1000 | 3 | 0.9000 |" in text
    assert "that of seed 2:\nthe best on the same rows" in text
    for words in (*LABELS, "not comparable with the paper's", "a" * 64, "c" * 40, f"| {TEACHER} |", "`cpu a / b`"):
        assert words in text
    assert "MobileBertForSequenceClassification" in text


def test_a_pretrained_model_has_its_heldout_values_and_no_score(place, capsys):
    assert published(TEACHER) == 0
    text = capsys.readouterr().out.partition("\n\n")[2].rpartition("nothing was uploaded")[0]
    (result,) = ModelCard(text).data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("fill-mask", "heldout_mlm_loss", 3.5)
    assert "unigram_entropy" not in text
    assert "not comparable" not in text


def test_a_model_that_has_not_learnt_says_so_first(place, capsys):
    graph = build_graph(load_study("mine.yaml"))
    folder = record_folder(place / "results", "mine", graph[SCORE])
    content = json.loads((folder / "result.json").read_text()) | {"details": {"statuses": ["failed"]}, "samples": {}}
    content.pop("checksum")
    (folder / "result.json").write_text(json.dumps(sealed(content)))
    assert published(SCORE) == 0
    assert "**This model has not learnt its task**: 1 of 1 runs failed." in capsys.readouterr().out


def test_without_push_every_checkpoint_is_listed_and_nothing_uploaded(place, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)  # to call it is an error
    assert published("--owner", "me") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "me/mine-ib-bert-large-pretrain: pretrain/ib-bert-large",
        "me/mine-mobilebert-sst2: finetune/mobilebert/sst2",
        "nothing was uploaded; --push uploads the checkpoints that you name",
    ]
    assert sum(line.endswith("model.safetensors") for line in lines) == 2


QUANTIZED = "quantize/mobilebert/sst2"
HOW = {"method": "dynamic", "engine": "onnxruntime 1", "weight_range": [-64, 64], "activation_type": "uint8", "saturates": False,
       "scored_on": {"cpu": "a | b", "isa": "avx2"}, "bytes_before": 400_000, "bytes_after": 100_000}  # fmt: skip
INT8 = {
    **{"model.int8.onnx": b"int8", "model.static.onnx": b"static", "model.nncf.xml": b"graph", "model.nncf.bin": b"weights"},
    **{"model.qat.onnx": b"qat", "model.dynamic.tflite": b"dynamic", "model.int8.tflite": b"integers"},
    **{"model.quanto.safetensors": b"quanto", "model.quanto.json": b"{}"},
}


@pytest.fixture
def quantized(place):
    """Return the folder of the int8 files of the student, beside their record."""
    graph = build_graph(load_study("mine.yaml"))
    engines = {name: HOW | {"saturates": name == "onnxruntime-static"} for name in FILES}
    metrics = {f"{name}:accuracy": 0.6 for name in FILES}
    metrics |= {"accuracy": 0.75, "accuracy_change": -0.15, "onnxruntime-static:accuracy": 0.5}
    hashes = {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": 9} for name, content in INT8.items()}
    hashes["predictions.parquet"] = {"sha256": "0", "bytes": 9}
    write(place / "results", graph, QUANTIZED, artefacts=hashes, metrics=metrics, quantizations=engines)
    folder = place / "results/mine" / QUANTIZED
    for name, content in INT8.items():
        (folder / name).write_bytes(content)
    return folder


def test_the_int8_files_stand_beside_the_checkpoint_with_their_own_scores(quantized, capsys):
    assert published(SCORE) == 0
    printed = capsys.readouterr().out
    files = re.findall(r"bytes  (.+)", printed)
    assert files[-10:] == [
        "onnx/model_quantized.onnx",
        "onnx/model_static_quantized.onnx",
        "openvino/model.nncf.xml",
        "openvino/model.nncf.bin",
        "onnx/model_qat_quantized.onnx",
        "tflite/model.dynamic.tflite",
        "tflite/model.int8.tflite",
        "quanto/model.quanto.safetensors",
        "quanto/model.quanto.json",
        "onnx/result.json",
    ]
    section = printed.partition("## int8")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert len(named) == len(FILES)
    assert set(named) < set(files)
    for program in ("ONNX Runtime", "OpenVINO", "LiteRT", "quanto"):
        assert program in section
    cpu = "100,000 of 400,000 | `a / b, avx2`"
    assert f"| `onnx/model_quantized.onnx` | accuracy | 0.7500 | -0.1500 | {cpu} |" in printed
    assert f"| `onnx/model_static_quantized.onnx` | accuracy | 0.5000 | – | {cpu} |" in printed
    assert "without VNNI can give other answers" in printed
    assert "| accuracy | 0.8000 | 0.1000 | 3 | 0.9000 |" in printed


def test_int8_files_are_uploaded_and_checked_like_all_others(quantized, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "made", [])
    monkeypatch.setattr(Hub, "commits", {})
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert published(SCORE, "--owner", "me", "--push") == 0
    files = Hub.commits["me/mine-mobilebert-sst2"]
    assert Path(files["onnx/model_quantized.onnx"]).read_bytes() == b"int8"
    assert Path(files["onnx/result.json"]).samefile(quantized / "result.json")
    (quantized / "model.int8.onnx").write_bytes(b"other")
    assert published(SCORE, "--owner", "me", "--push") == 2
    assert "changed since quantize/mobilebert/sst2 was recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields", [{"status": "refused"}, {"inputs": {SCORE: "0" * 64}}, {"artefacts": {"predictions.parquet": {"sha256": "0"}}}]
)
def test_int8_files_of_no_use_are_left_out(quantized, capsys, fields):
    rewrite(quantized / "result.json", **fields)
    assert published(SCORE) == 0
    printed = capsys.readouterr().out
    assert "onnx" not in printed
    assert "int8" not in printed


def test_int8_files_are_no_checkpoint_of_their_own(quantized, capsys):
    assert published(QUANTIZED) == 2
    assert capsys.readouterr().err == f"mobilebert: publish: {QUANTIZED}: its files go with the checkpoint; name {SCORE}\n"


def test_an_int8_model_that_has_not_learnt_says_so(quantized, capsys):
    rewrite(quantized / "result.json", details={"statuses": ["failed"]})
    assert published(SCORE) == 0
    assert "**The int8 model has not learnt its task**: 1 of 1 runs failed." in capsys.readouterr().out


def test_a_card_names_no_int8_file_that_the_record_lacks(quantized, capsys):
    content = json.loads((quantized / "result.json").read_text())
    kept = {name: known for name, known in content["artefacts"].items() if name in ("model.int8.onnx", "model.nncf.xml")}
    rewrite(quantized / "result.json", artefacts=kept)
    assert published(SCORE) == 0
    section = capsys.readouterr().out.partition("## int8")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE) == ["onnx/model_quantized.onnx", "openvino/model.nncf.xml"]
    assert "LiteRT" not in section
    assert "quanto" not in section


class Hub:
    """A hub that keeps what it is given."""

    made, commits, refuses = [], {}, None

    def create_repo(self, repo, exist_ok):
        assert exist_ok
        self.made.append(repo)

    def create_commit(self, repo, operations, commit_message):
        if self.refuses:
            raise self.refuses
        self.commits[repo] = {item.path_in_repo: item.path_or_fileobj for item in operations} | {"message": commit_message}
        return type("Commit", (), {"commit_url": f"https://hub/{repo}"})


def test_push_uploads_card_record_and_checked_files_in_one_commit(place, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert published(SCORE, "--owner", "me", "--push") == 0
    assert "uploaded: https://hub/me/mine-mobilebert-sst2" in capsys.readouterr().out
    assert Hub.made == ["me/mine-mobilebert-sst2"]
    files = Hub.commits["me/mine-mobilebert-sst2"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "result.json", "message"}
    assert ModelCard(files["README.md"].decode()).data.model_name == "mine-mobilebert-sst2"
    assert files["message"].startswith(f"{SCORE} of study mine, ")
    monkeypatch.setattr(Hub, "refuses", ConnectionError("the hub is down"))
    assert published(SCORE, "--owner", "me", "--push") == 2
    assert capsys.readouterr().err == "mobilebert: publish: me/mine-mobilebert-sst2: ConnectionError: the hub is down\n"
    (place / "results/mine" / SCORE / "model/config.json").write_text("changed")
    assert published(SCORE, "--owner", "me", "--push") == 2
    assert "changed since finetune/mobilebert/sst2 was recorded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((SCORE, "--push"), "--push needs the checkpoints by name, and --owner"),
        (("--push", "--owner", "me"), "--push needs the checkpoints by name, and --owner"),
        (
            (SCORE, "--owner", "../a b"),
            "publish: --owner: the hub takes no repository '../a b/mine-mobilebert-sst2'; use letters, digits, - and _",
        ),
        ((SCORE, "--push", "--owner", "me"), "no token for the hub; set HF_TOKEN"),
        (("finetune/mobilebert/rte",), "no trained checkpoint with a current record; allowed: "),
    ],
)
def test_what_cannot_be_published_is_one_line(place, capsys, words, problem):
    assert published(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_an_offline_environment_refuses_to_push(place, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert published(SCORE, "--owner", "me", "--push") == 2
    assert capsys.readouterr().err.startswith("mobilebert: publish: HF_HUB_OFFLINE is set, so nothing is uploaded")
    assert published(SCORE) == 0


@pytest.mark.parametrize(
    ("artefacts", "problem"),
    [
        ({"model/../../../evil": {"sha256": "a"}}, "'model/../../../evil', which lies outside its folder"),
        ({"model/link": {"sha256": "a"}}, "'model/link', which lies outside its folder"),
        ({"model/config.json": {}}, "has no sha256 of it"),
    ],
)
def test_a_record_names_only_files_of_its_folder_with_their_hash(place, capsys, monkeypatch, artefacts, problem):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    folder = place / "results/mine" / SCORE
    (folder / "model/link").symlink_to(place / "mine.yaml")
    rewrite(folder / "result.json", artefacts=artefacts)
    assert published(SCORE, "--owner", "me", "--push") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_card_escapes_what_records_say_and_prints_no_nan(place, capsys):
    evil = "<img src=x>|[a](http://b)"
    path = place / "results/mine" / SCORE / "result.json"
    details = {"seeds": [0, 1, evil], "best_seed": evil, "statuses": ["ok"] * 3}
    rewrite(path, commit=evil, started=evil, details=details, samples={"accuracy": [0.7, 1e308, None]}, machine={evil: "`"})
    rewrite(place / "results/mine/data/result.json", artefacts={"tasks/sst2/train.parquet": {"sha256": f"`{evil}"}})
    rewrite(place / "results/mine" / TEACHER / "result.json", started=evil, metrics={f"heldout_{evil}": 1.0})
    assert published() == 0
    assert published(SCORE) == 0
    assert published(TEACHER) == 0
    text = capsys.readouterr().out
    cards = re.sub(r"(?s)^---\n.*?\n---\n", "", text, flags=re.MULTILINE)  # the head is YAML, which quotes
    shown = re.sub(r"`[^`\n]*`", "", cards)
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[a\]\(", shown)
    assert r"\<img" in shown
    assert "nan" not in shown.split()
    assert "| accuracy | 0.8000 | " in text


def test_a_card_needs_no_architecture(place):
    found = {record.id: record for record in map(read_record, (place / "results/mine").rglob("result.json"))}
    odd = found[SCORE].model_copy(update={"config": found[SCORE].config | {"architecture": "none", "lr": math.nan}})
    checkpoint = Checkpoint(odd, place, {})
    text = card(checkpoint, found, build_graph(load_study("mine.yaml")))
    assert "MobileBertForSequenceClassification" in text
    assert "nan" not in text
