"""Scores of prediction files against scikit-learn, SciPy and the published score; refused files."""

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from mobilebert.cli.main import main
from mobilebert.evaluation import input_rows as rows
from mobilebert.evaluation import prediction_files
from mobilebert.evaluation.squad import score_v2
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

ROWS = 40
DRAW = np.random.default_rng(3)


def glue_table(name, rows=ROWS, first=0):
    task = TASKS[name]
    labels = DRAW.integers(0, 26, rows) / 5 if task.is_regression else DRAW.integers(0, task.num_labels, rows)
    texts = {column: [f"{column} {row}" for row in range(rows)] for column in task.text_columns}
    idx = DRAW.permutation(np.arange(first, first + rows))
    return pd.DataFrame({**texts, "label": labels, "idx": idx})


def squad_table(unanswerable=()):
    rows = []
    for row in range(12):
        context = f"the cat number {row} sat on a red mat"
        texts = [] if row in unanswerable else [f"number {row}", "mat"]
        answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
        rows.append({"id": f"q{row}", "title": "t", "context": context, "question": "which?", "answers": answers})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data folder with validation splits, and test splits with hidden labels."""
    folder = tmp_path_factory.mktemp("data")
    for name, task in TASKS.items():
        if task.is_squad:
            tables = {"validation": squad_table(range(0, 12, 3) if name == "squad_v2.0" else ())}
        else:
            tables = {split: glue_table(name, first=100 * (split != "validation")) for split in task.splits}
            tables = {split: frame.assign(label=-1) if split.startswith("test") else frame for split, frame in tables.items()}
        for split, frame in tables.items():
            path = folder / task.folder / f"{task.splits[split]}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(path)
    return folder


def table_of(data, name, split="validation"):
    return pd.read_parquet(data / TASKS[name].folder / f"{TASKS[name].splits[split]}.parquet")


def score(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def guesses(name, frame):
    """Return predictions of which three in four are right, in another order than the table's."""
    task = TASKS[name]
    wrong = DRAW.random(len(frame)) < 0.25
    if task.is_regression:
        values = frame["label"] + DRAW.normal(size=len(frame))
    else:
        values = np.where(wrong, (frame["label"] + 1) % task.num_labels, frame["label"])
    return pd.DataFrame({"idx": frame["idx"], "prediction": values}).sample(frac=1, random_state=1)


def oracle(name, predictions, labels):
    names = {
        "accuracy": lambda: sk.accuracy_score(labels, predictions),
        "f1": lambda: sk.f1_score(labels, predictions),
        "matthews_correlation": lambda: sk.matthews_corrcoef(labels, predictions),
        "pearson": lambda: stats.pearsonr(predictions, labels)[0],
        "spearmanr": lambda: stats.spearmanr(predictions, labels)[0],
    }
    return {metric: 100 * names[metric]() for metric in TASKS[name].metrics}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if "validation" in task.splits and not task.is_squad])
@pytest.mark.parametrize("form", ["tsv", "server", "names", "parquet"])
def test_glue_files_score_as_scikit_learn_does(name, form, data, tmp_path, capsys):
    task, table = TASKS[name], table_of(data, name)
    found = guesses(name, table)
    joined = found.merge(table[["idx", "label"]], on="idx")
    expected = oracle(name, joined["prediction"], joined["label"])
    path = tmp_path / ("p.parquet" if form == "parquet" else "p.tsv")
    if form == "parquet":
        found.to_parquet(path)
    elif form == "server":
        path.write_text(prediction_files.server_tsv(task, found["idx"], found["prediction"]))
    else:
        if form == "names" and task.labels:
            found = found.assign(prediction=[task.labels[code] for code in found["prediction"]])
        found.to_csv(path, sep="\t", index=False)
    result = score(capsys, "--task", name, "--data", data, "--predictions", path)
    assert (result.pop("task"), result.pop("unit"), result.pop("rows")) == (name, "percent", {"validation": ROWS})
    labels = {"qqp": "40 held-out train rows", "mnli": "40 of 9,815 matched rows", "rte": "40 of 277 validation rows"}
    found = result.pop("labels")
    assert list(found) == ["validation"]
    assert found["validation"] == labels.get(name, found["validation"])
    assert result == pytest.approx(expected, abs=1e-4 if form == "server" else 1e-9)


def test_a_table_file_stands_for_a_folder(data, tmp_path, capsys):
    guesses("rte", table_of(data, "rte")).to_parquet(tmp_path / "p.parquet")
    given = ("--task", "rte", "--predictions", tmp_path / "p.parquet", "--data")
    assert score(capsys, *given, data / "glue/rte/validation.parquet") == score(capsys, *given, data)


def test_the_predictions_of_a_study_score_both_sets_of_mnli(data, tmp_path, capsys):
    """AX, which a study keeps in the same file, has no labels and so no score."""
    parts, expected = [], {}
    for split, prefix in (("validation", ""), ("validation_mismatched", "mismatched_")):
        table = table_of(data, "mnli", split)
        part = guesses("mnli", table)
        labels = part.merge(table[["idx", "label"]], on="idx")["label"].to_numpy()
        expected[f"{prefix}accuracy"] = 100 * float((part["prediction"].to_numpy() == labels).mean())
        parts.append(part.assign(split=split))
    parts.append(pd.DataFrame({"split": "ax", "idx": range(5), "prediction": 0}))
    path = tmp_path / "predictions.parquet"
    pd.concat(parts).to_parquet(path)
    given = ("--task", "mnli", "--data", data, "--predictions", path)
    result = score(capsys, *given)
    assert result["rows"] == {"validation": ROWS, "validation_mismatched": ROWS}
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    second = score(capsys, *given, "--split", "validation_mismatched")
    assert "accuracy" not in second
    assert second["mismatched_accuracy"] == result["mismatched_accuracy"]


def test_squad_v1_from_json_gz_and_parquet(data, tmp_path, capsys):
    """Every answer is right but two: one shares one word of two, the other none. "mat" has one
    word: 2 * 1 * .5 / 1.5 = 2 / 3."""
    texts = {f"q{row}": f"number {row}" for row in range(12)} | {"q0": "mat red", "q1": "dog"}
    (tmp_path / "p.json").write_text(json.dumps(texts))
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps(texts).encode()))
    pd.DataFrame({"id": texts.keys(), "prediction": texts.values()}).to_parquet(tmp_path / "p.parquet")
    for name in ("p.json", "p.json.gz", "p.parquet"):
        result = score(capsys, "--task", "squad_v1.1", "--data", data, "--predictions", tmp_path / name)
        assert result["exact_match"] == pytest.approx(100 * 10 / 12)
        assert result["f1"] == pytest.approx(100 * (10 + 2 / 3) / 12)


def test_squad_v2_with_null_odds(data, tmp_path, capsys):
    """Predictions in the official format count as given, whatever their odds; only the best
    thresholds use the odds."""
    texts = {f"q{row}": f"number {row}" if row % 2 else "" for row in range(12)}
    odds = {f"q{row}": float(row - 6) for row in range(12)}
    golds = [{"id": f"q{row}", "answers": [f"number {row}", "mat"] if row % 3 else []} for row in range(12)]
    (tmp_path / "p.json").write_text(json.dumps(texts))
    (tmp_path / "odds.json").write_text(json.dumps(odds))
    given = ("--task", "squad_v2.0", "--data", data, "--predictions")
    plain = score(capsys, *given, tmp_path / "p.json")
    both = score(capsys, *given, tmp_path / "p.json", "--null-odds", tmp_path / "odds.json")
    assert "best_f1" not in plain
    assert {key: both[key] for key in plain} == plain
    expected = score_v2(texts, golds, odds)
    assert both["best_f1"] == pytest.approx(100 * expected["best_f1"])
    assert both["best_f1_thresh"] == expected["best_f1_thresh"]
    assert (both["HasAns_total"], both["NoAns_total"], both["total"]) == (8, 4, 12)
    assert both["HasAns_exact"] == pytest.approx(100 * sum(row % 2 for row in range(12) if row % 3) / 8)
    # A study's table answers every question; its odds say which answers count.
    table = pd.DataFrame({"id": texts.keys(), "prediction": texts.values(), "null_odds": odds.values()})
    table.to_parquet(tmp_path / "p.parquet")
    own = score(capsys, *given, tmp_path / "p.parquet")
    assert own["f1"] == pytest.approx(100 * expected["f1"])
    assert own["best_f1"] == both["best_f1"]


def test_the_released_predictions_score_as_published(real_data, capsys):
    path = real_data / "squad/reference_predictions/bert_ensemble_v1.1.json.gz"
    result = score(capsys, "--task", "squad_v1.1", "--data", real_data, "--predictions", path)
    assert result["rows"] == {"validation": 10_570}
    assert (round(result["exact_match"], 2), round(result["f1"], 2)) == (86.21, 92.20)


def test_score_needs_no_torch(data, tmp_path):
    guesses("cola", table_of(data, "cola")).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    code = (
        "import sys; from mobilebert.cli.main import main\n"
        f"assert main(['score', '--task', 'cola', '--data', {str(data)!r}, '--predictions', {str(tmp_path / 'p.tsv')!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)


# --- refusals: exit code 2, one line, nothing printed as a result

GOOD = "idx\tprediction\n" + "".join(f"{row}\t0\n" for row in range(ROWS))
ANSWERS = {f"q{row}": "mat" for row in range(12)}
TEXT = json.dumps(ANSWERS)


def parquet(**columns):
    return pd.DataFrame(columns)


REFUSED = {
    "empty": ("rte", "p.tsv", "", "is empty"),
    "only a header": ("rte", "p.tsv", "idx\tprediction\n", "no predictions"),
    "wrong column": ("rte", "p.tsv", GOOD.replace("prediction", "label"), "no column prediction"),
    "commas": ("rte", "p.tsv", GOOD.replace("\t", ","), "no column idx, prediction"),
    "ragged": ("rte", "p.tsv", GOOD + "1\t2\t3\n", "not a readable table"),
    "wide rows": ("rte", "p.tsv", GOOD.replace("\t0", "\t0\t0"), "row 0 has 3 fields, its header 2"),
    "short rows": ("rte", "p.tsv", GOOD.replace("\n7\t0", "\n7"), "row 7 has 1 fields, its header 2"),
    "a blank line": ("rte", "p.tsv", GOOD.replace("\n7\t0", "\n\n7\t0"), "row 7 has 1 fields, its header 2"),
    "one name twice": ("rte", "p.tsv", GOOD.replace("idx\t", "idx\tidx\t").replace("\t0", "\t0\t0"), "two columns of one name"),
    "two keys": ("rte", "p.tsv", GOOD.replace("idx\t", "idx\tindex\t").replace("\t0", "\t0\t0"), "has both idx and index"),
    "a zip": ("rte", "p.zip", b"PK", "no column idx, prediction"),
    "a split of numbers": (
        "rte",
        "p.parquet",
        parquet(split=[1] * ROWS, idx=range(ROWS), prediction=0),
        "column split holds 1; allowed",
    ),
    "no such split": (
        "rte",
        "p.tsv",
        "split\t" + GOOD[:-1].replace("\n", "\nvalidation\t").replace("validation\t7", "dev\t7"),
        "column split holds 'dev'",
    ),
    "not text": ("rte", "p.tsv", b"\xff\xfe\x00\x01\xff", "not a readable table"),
    "idx": ("rte", "p.tsv", GOOD.replace("\n3\t", "\nthree\t"), "column idx"),
    "half an idx": ("rte", "p.parquet", parquet(idx=np.arange(ROWS) + 0.5, prediction=[0] * ROWS), "column idx"),
    "missing idx": ("rte", "p.tsv", GOOD.replace("\n7\t0", ""), "p.tsv: lacks idx 7 .1 such; the table has 40 rows"),
    "extra idx": ("rte", "p.tsv", GOOD + "77\t0\n", "p.tsv: holds unknown idx 77 .1 such"),
    "repeated idx": ("rte", "p.tsv", GOOD + "7\t0\n", "1 idx are there twice, first 7"),
    "class out of range": ("rte", "p.tsv", GOOD.replace("\n7\t0", "\n7\t2"), "idx 7: prediction '2' is no class of rte"),
    "no name": ("rte", "p.tsv", GOOD.replace("\n7\t0", "\n7\tneutral"), "allowed: 0 to 1 or entailment, not_entailment"),
    "a share": ("rte", "p.parquet", parquet(idx=range(ROWS), prediction=[0.5] * ROWS), "'0.5' is no class"),
    "null": ("rte", "p.parquet", parquet(idx=range(ROWS), prediction=[None] * ROWS), "is no class"),
    "nan": ("stsb", "p.tsv", GOOD.replace("\n7\t0", "\n7\tnan"), "idx 7: prediction 'nan' is not a finite number"),
    "infinite": ("stsb", "p.parquet", parquet(idx=range(ROWS), prediction=[np.inf] * ROWS), "inf is not a finite number"),
    "no number": ("stsb", "p.tsv", GOOD.replace("\n7\t0", "\n7\thigh"), "'high' is not a finite number"),
    "no parquet": ("rte", "p.parquet", b"PAR1 not really", "not a readable parquet"),
    "no such file": ("rte", "other.tsv", None, "other.tsv: no such file"),
    "empty JSON": ("squad_v1.1", "p.json", "", "is empty"),
    "not JSON": ("squad_v1.1", "p.json", TEXT[:-5], "not JSON"),
    "a list": ("squad_v1.1", "p.json", "[1]", "a JSON list"),
    "not text but a number": ("squad_v1.1", "p.json", json.dumps(ANSWERS | {"q3": 3}), "id q3 is not text but int"),
    "a null": ("squad_v1.1", "p.json", json.dumps(ANSWERS | {"q3": None}), "id q3 is not text but NoneType"),
    "missing id": ("squad_v1.1", "p.json", json.dumps({k: v for k, v in ANSWERS.items() if k != "q3"}), "p.json: lacks id q3 "),
    "extra id": ("squad_v1.1", "p.json", json.dumps(ANSWERS | {"z": ""}), "p.json: holds unknown id z "),
    "repeated id": ("squad_v1.1", "p.json", TEXT[:-1] + ', "q3": "mat"}', "1 ids are there twice, first q3"),
    "truncated gz": ("squad_v1.1", "p.json.gz", gzip.compress(TEXT.encode())[:-12], "not a whole gzip file"),
    "no gz": ("squad_v1.1", "p.json.gz", TEXT, "not a whole gzip file"),
    "no gz of a table": ("rte", "p.tsv.gz", GOOD, "not a whole gzip file"),
    "no such JSON": ("squad_v1.1", "other.json", None, "no such file"),
    "no id": ("squad_v2.0", "p.parquet", parquet(idx=["q1"], prediction=["mat"]), "no column id"),
    "repeated row": ("squad_v2.0", "p.parquet", parquet(id=["q1", "q1"], prediction=["mat"] * 2), "1 ids are there twice"),
    "an id of no text": ("squad_v2.0", "p.parquet", parquet(id=[None, "q1"], prediction="mat"), "column id holds something else"),
    "odds of a table": (
        "squad_v2.0",
        "p.parquet",
        parquet(id=list(ANSWERS), prediction="mat", null_odds=np.nan),
        "null odds of id q0 are nan",
    ),
    "hidden": ("ax", "p.tsv", GOOD, "hidden labels"),
    "unknown task": ("sst-2", "p.tsv", GOOD, "must be one of cola, sst2"),
}


def refused(capsys, arguments, message):
    assert main([str(item) for item in arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.startswith("mobilebert: ")
    with pytest.raises(UserError, match=message):  # match shows the line if it fails
        raise UserError(line)


def put(path, content):
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("case", REFUSED)
def test_predictions_that_are_refused(case, data, tmp_path, capsys):
    task, name, content, message = REFUSED[case]
    put(tmp_path / name, content)
    refused(capsys, ["score", "--task", task, "--data", data, "--predictions", tmp_path / name], message)


@pytest.mark.parametrize("name", ["p.tsv", "p.jsonl", "p.json"])
def test_a_folder_in_place_of_a_file_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    read = {
        "p.tsv": lambda path: prediction_files.read_glue(path, TASKS["rte"]),
        "p.jsonl": lambda path: rows.read_rows(path, ()),
        "p.json": prediction_files.read_json,
    }
    with pytest.raises(UserError, match="cannot be read"):
        read[name](tmp_path / name)


@pytest.mark.parametrize("place", ["--data", "--predictions", "--null-odds"])
@pytest.mark.parametrize("name", ["p.json", "p.json.gz", "p.parquet", "zero"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(place, name, data, tmp_path, capsys):
    path = Path("/dev/zero") if name == "zero" else tmp_path / name
    if name != "zero":
        os.mkfifo(path)
    put(tmp_path / "good.json", TEXT)
    put(tmp_path / "odds.json", json.dumps(dict.fromkeys(ANSWERS, 0.5)))
    given = {"--data": data, "--predictions": tmp_path / "good.json", "--null-odds": tmp_path / "odds.json"} | {place: path}
    refused(capsys, ["score", "--task", "squad_v2.0", *sum(given.items(), ())], f"^mobilebert: {path}: not a regular file$")


@pytest.mark.parametrize("name", ["rows.tsv", "rows.jsonl", "rows.parquet"])
def test_a_users_rows_are_not_read_from_a_socket(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 characters
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(name)
        with pytest.raises(UserError, match=f"^{name}: not a regular file$"):
            rows.read_rows(Path(name), ())


@pytest.mark.parametrize(
    ("task", "odds", "message"),
    [
        ("squad_v1.1", "{}", "belong to squad_v2.0"),
        ("squad_v2.0", json.dumps(dict.fromkeys(list(ANSWERS)[1:], 0.5)), "odds.json: lacks id q0 "),
        ("squad_v2.0", json.dumps(dict.fromkeys(ANSWERS, "high")), "null odds of id q0 are 'high'"),
        ("squad_v2.0", json.dumps(dict.fromkeys(ANSWERS, 0.5)).replace("0.5", "NaN", 1), "null odds of id q0 are nan"),
        ("squad_v2.0", json.dumps(dict.fromkeys(ANSWERS, 10**400)), "null odds of id q0 are 10{39};"),
    ],
)
def test_null_odds_that_are_refused(task, odds, message, data, tmp_path, capsys):
    put(tmp_path / "p.json", TEXT)
    put(tmp_path / "odds.json", odds)
    given = ["score", "--task", task, "--data", data, "--predictions", tmp_path / "p.json", "--null-odds", tmp_path / "odds.json"]
    refused(capsys, given, message)


def numbered(table):
    return table.assign(answers=[{"text": [4], "answer_start": [0]}] * len(table))


def moved(table):
    return table.assign(answers=[{"text": ["mat"], "answer_start": [0]}] * len(table))


@pytest.mark.parametrize(
    ("task", "split", "change", "message"),
    [
        ("rte", "validation", lambda table: table.drop(columns="label"), "no column label"),
        ("rte", "validation", lambda table: table.assign(label=2), "labels of rte are out of range, first 2"),
        ("rte", "validation", lambda table: table.assign(idx=1), "repeat the idx"),
        ("rte", "validation", lambda table: table.assign(label=-1), "hidden labels"),
        ("rte", "test", lambda table: table.assign(label=-1), "hidden labels"),
        ("rte", "dev", lambda table: table, "no split 'dev'; allowed: train, validation, test"),
        ("squad_v1.1", "validation", moved, "12 questions have an answer that is not in the context at its answer_start"),
        ("squad_v1.1", "validation", lambda table: table.assign(id="a"), "repeat the id"),
        ("squad_v1.1", "validation", numbered, "answers of id q0 hold a text that is not a string"),
        ("squad_v1.1", "test", lambda table: table, "no split 'test'"),
    ],
)
def test_tables_that_are_refused(task, split, change, message, data, tmp_path, capsys):
    change(table_of(data, task)).to_parquet(tmp_path / "table.parquet")
    path = tmp_path / ("p.json" if task.startswith("squad") else "p.tsv")
    put(path, TEXT if task.startswith("squad") else GOOD)
    given = ["score", "--task", task, "--predictions", path, "--split", split, "--data"]
    refused(capsys, [*given, tmp_path / "table.parquet"], message)


def test_a_test_split_of_a_folder_cannot_be_scored(data, tmp_path, capsys):
    put(tmp_path / "p.tsv", GOOD)
    given = ["score", "--task", "rte", "--data", data, "--predictions", tmp_path / "p.tsv", "--split", "test"]
    refused(capsys, given, "hidden labels")
    refused(capsys, [*given[:4], tmp_path, *given[5:7], "--split", "validation"], "validation.parquet: no such file")


@pytest.mark.parametrize("threads", ["0", "-2", "two"])
def test_threads_are_a_positive_number(threads, capsys):
    for command in (["evaluate", "m", "--task", "rte", "--data", "d"], ["report"]):
        with pytest.raises(SystemExit) as end:
            main([*command, "--threads", threads])
        assert end.value.code == 2
        assert f"'{threads}' is not a positive integer" in capsys.readouterr().err


def test_a_folder_with_checksums_is_checked_against_them(data, tmp_path, capsys):
    table = tmp_path / "glue/rte/validation.parquet"
    table.parent.mkdir(parents=True)
    table_of(data, "rte").to_parquet(table)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  glue/rte/validation.parquet\n")
    put(tmp_path / "p.tsv", GOOD)
    refused(capsys, ["score", "--task", "rte", "--data", tmp_path, "--predictions", tmp_path / "p.tsv"], "sha256 is")
