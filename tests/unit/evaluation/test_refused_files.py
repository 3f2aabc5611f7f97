"""Prediction files, null odds and tables that `mobilebert score` refuses."""

import gzip
import json
import os
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scored_tables import ROWS, table_of, write_tables

from mobilebert.cli.main import main
from mobilebert.evaluation import input_rows as rows
from mobilebert.evaluation import prediction_files
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("data"))


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
