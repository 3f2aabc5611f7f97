"""The zip for the GLUE server: its files, their format, and refusals before any model runs."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from mobilebert.cli.main import main
from mobilebert.evaluation import input_rows as rows
from mobilebert.evaluation import submission
from mobilebert.evaluation.glue import LEADERBOARD
from mobilebert.study.tasks import TASKS

ROWS = 6
HEADER = "index\tprediction"


def table(task, labels, order=None):
    texts = {column: [f"text {row}" for row in range(len(labels))] for column in task.text_columns}
    frame = pd.DataFrame({**texts, "label": labels, "idx": range(len(labels))})
    return frame if order is None else frame.iloc[order]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Return a data folder with unordered test sets of six rows; the last class is the majority."""
    rows = {name: dict.fromkeys(task.splits.values(), ROWS) for name, task in TASKS.items()}
    monkeypatch.setattr(submission, "OFFICIAL_ROWS", rows)
    for task in TASKS.values():
        if task.is_squad:
            continue
        for split, stem in task.splits.items():
            path = tmp_path / "data" / task.folder / f"{stem}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            if split == "train":
                frame = table(task, [1.0, 2.0, 4.5] if task.is_regression else [0, task.num_labels - 1, task.num_labels - 1])
            elif split.startswith("test"):
                frame = table(task, [-1.0 if task.is_regression else -1] * ROWS, order=[3, 0, 5, 1, 2, 4])
            else:
                continue
            frame.to_parquet(path)
    return tmp_path / "data"


class Model:
    """A stand-in for a model that predicts a class (or value) from the row's number."""

    def __init__(self, source, task):
        self.task = task

    def predict(self, frame, what):
        number = frame[self.task.text_columns[0]].str.split().str[1].astype(int).to_numpy()
        return pd.DataFrame({"prediction": number / 4 if self.task.is_regression else number % self.task.num_labels})


@pytest.fixture
def models(monkeypatch):
    """Replace the loading of checkpoints; return the list of those that were loaded."""
    loaded = []

    def load(source, task, threads):
        loaded.append((source, task.name))
        return Model(source, task)

    monkeypatch.setattr("mobilebert.evaluation.checkpoints.load_checkpoint", load)
    return loaded


def arguments(data, out, pairs):
    return ["submission", *[f"{task}={model}" for task, model in pairs.items()], "--data", str(data), "--out", str(out)]


def contents(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


def test_the_zip_has_every_file_that_the_server_reads(data, models, tmp_path, capsys):
    pairs = {task: f"models/{task}" for task in LEADERBOARD}
    assert main(arguments(data, tmp_path / "out.zip", pairs)) == 0
    summary = json.loads(capsys.readouterr().out)
    found = contents(tmp_path / "out.zip")
    expected = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
    assert list(found) == list(summary) == [f"{name}.tsv" for name in expected]
    assert models == [(f"models/{task}", task) for task in LEADERBOARD]  # MNLI's model is loaded once for three files
    two, nli = ["0", "1"], ["entailment", "neutral", "contradiction"]
    names = dict.fromkeys(("CoLA", "SST-2", "MRPC", "QQP", "WNLI"), two) | dict.fromkeys(("MNLI-m", "MNLI-mm", "AX"), nli)
    names |= {name: ["entailment", "not_entailment"] for name in ("QNLI", "RTE")}
    for name, classes in names.items():
        assert found[f"{name}.tsv"] == [HEADER, *[f"{row}\t{classes[row % len(classes)]}" for row in range(ROWS)]]
    assert found["STS-B.tsv"] == [HEADER, *[f"{row}\t{row / 4:.6f}" for row in range(ROWS)]]
    assert summary["AX.tsv"] == {"rows": ROWS, "from": "models/mnli"}
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:  # a fixed time, so that equal predictions give equal bytes
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_majority_stands_in_only_for_named_tasks_and_says_so(data, models, tmp_path, capsys):
    pairs = dict.fromkeys(LEADERBOARD, "m") | dict.fromkeys(("wnli", "mnli", "stsb"), "majority")
    assert main(arguments(data, tmp_path / "out.zip", pairs)) == 0
    summary, found = json.loads(capsys.readouterr().out), contents(tmp_path / "out.zip")
    assert {name for name, facts in summary.items() if "majority" in facts["from"]} == {
        "WNLI.tsv",
        "MNLI-m.tsv",
        "MNLI-mm.tsv",
        "AX.tsv",
        "STS-B.tsv",
    }
    assert summary["WNLI.tsv"]["from"] == "majority: 1, no model"
    assert found["WNLI.tsv"][1:] == [f"{row}\t1" for row in range(ROWS)]
    assert found["AX.tsv"][1:] == [f"{row}\tcontradiction" for row in range(ROWS)]
    assert found["STS-B.tsv"][1:] == [f"{row}\t2.500000" for row in range(ROWS)]
    assert len(models) == 6


ALL = dict.fromkeys(LEADERBOARD, "m")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"cola": "m"}, "missing: sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli (TASK=majority"),
        (ALL | {"ax": "m"}, "'ax=m': must be TASK=MODEL"),
        (ALL | {"squad_v1.1": "m"}, "'squad_v1.1=m': must be TASK=MODEL"),
        (ALL | {"cola": ""}, "'cola=': must be TASK=MODEL"),
    ],
)
def test_pairs_that_are_refused(pairs, message, data, models, tmp_path, capsys):
    assert main(arguments(data, tmp_path / "out.zip", pairs)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_task_named_twice_is_refused(data, tmp_path, capsys):
    given = arguments(data, tmp_path / "out.zip", ALL)
    assert main([given[0], "cola=other", *given[1:]]) == 2
    assert "cola is named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "test_mismatched.parquet: no such file"),
        (
            lambda path: pd.read_parquet(path).iloc[1:].to_parquet(path),
            "test_mismatched of mnli is not the server's: 5 of 6 rows",
        ),
        (lambda path: pd.read_parquet(path).assign(idx=np.arange(ROWS) + 7).to_parquet(path), "not the server's"),
    ],
)
def test_a_test_set_that_is_not_whole_is_refused_before_any_model_runs(change, message, data, models, tmp_path, capsys):
    change(data / "glue/mnli/test_mismatched.parquet")
    assert main(arguments(data, tmp_path / "out.zip", ALL)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert models == []
    assert not (tmp_path / "out.zip").exists()


def test_only_a_zip_is_written(data, models, tmp_path, capsys):
    assert main(arguments(data, tmp_path / "out.tar", ALL)) == 2
    assert "a submission is a .zip" in capsys.readouterr().err


def test_the_real_test_sets_are_the_servers(real_data):
    """The folder has neither QQP's nor MNLI's."""
    whole = [name for name in LEADERBOARD if name not in ("qqp", "mnli")]
    for name, split, _ in submission.FILES.values():
        if name in (*whole, "ax"):
            frame = rows.read_table(str(real_data), TASKS[name], split)
            assert submission.is_whole(frame, name, split)
