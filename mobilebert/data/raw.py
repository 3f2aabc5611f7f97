"""Read the benchmarks' original files as tables with the columns of their Hugging Face data sets.

    glue/<TASK>/train.tsv, dev.tsv, test.tsv   from the GLUE download; TASK as in CoLA, SST-2, STS-B
    glue/diagnostic/diagnostic.tsv             AX, if there is no glue/AX/test.tsv
    squad/train-v1.1.json, dev-v1.1.json, and the same for v2.0

`idx` is the row's number in the file, as in nyu-mll/glue (except MRPC, whose rows the hub numbers
before it splits them). If a file has no label column, as in test splits, its rows get label -1.
Text is read unchanged: quotation marks have no special meaning in a GLUE file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from mobilebert.data.reading import json_file, rows_of_tsv
from mobilebert.study.tasks import HIDDEN_LABEL, Task
from mobilebert.util.errors import UserError, shown_key

FILES = {
    "train": "train",
    "validation": "dev",
    "validation_matched": "dev_matched",
    "validation_mismatched": "dev_mismatched",
    "test": "test",
    "test_matched": "test_matched",
    "test_mismatched": "test_mismatched",
}
# Folder in the GLUE download; headings of the text columns in the order of Task.text_columns; the
# label's heading.
GLUE = {
    "cola": ("CoLA", ("sentence",), "label"),
    "sst2": ("SST-2", ("sentence",), "label"),
    "mrpc": ("MRPC", ("#1 String", "#2 String"), "Quality"),
    "stsb": ("STS-B", ("sentence1", "sentence2"), "score"),
    "qqp": ("QQP", ("question1", "question2"), "is_duplicate"),
    "mnli": ("MNLI", ("sentence1", "sentence2"), "gold_label"),
    "qnli": ("QNLI", ("question", "sentence"), "label"),
    "rte": ("RTE", ("sentence1", "sentence2"), "label"),
    "wnli": ("WNLI", ("sentence1", "sentence2"), "label"),
    "ax": ("AX", ("sentence1", "sentence2"), "label"),
}
COLA = ["source", "label", "mark", "sentence"]  # CoLA's labelled files have no header
NO_GOLD = "-"  # MNLI: the annotators did not agree on a label
DIGITS = re.compile(r"[0-9]{1,9}")
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def names(task: Task, stem: str) -> list[str]:
    """Return the original files, relative to a data folder, in which a split may be."""
    if task.is_squad:
        return [f"squad/{FILES[stem]}-{task.name.removeprefix('squad_')}.json"]
    found = [f"glue/{GLUE[task.name][0]}/{FILES[stem]}.tsv"]
    return [*found, "glue/diagnostic/diagnostic.tsv"] if task.name == "ax" else found


def read(path: Path, task: Task) -> pd.DataFrame:
    """Return the rows of one file, .tsv for GLUE and .json for SQuAD.

    The values are not checked yet: pass the rows to `check_table`. Raises UserError, naming the
    line or the place in the JSON, if the file has another form.
    """
    if task.is_squad != (path.suffix == ".json"):
        raise UserError(f"{path}: tables of {task.name} are read from .parquet and {'.json' if task.is_squad else '.tsv'}")
    return _squad(path) if task.is_squad else _glue(path, task)


def _glue(path: Path, task: Task) -> pd.DataFrame:
    """Return the rows of a GLUE file.

    `idx` also counts rows that are left out: QQP's with missing fields, MNLI's without a gold
    label.
    """
    _, texts, label = GLUE[task.name]
    header, rows = _header(path, task)
    if missing := [name for name in texts if name not in header]:
        raise UserError(f"{path}: no column {', '.join(missing)}; {task.name} needs {', '.join((*texts, label))}")
    if repeated := [name for name in (*texts, label) if header.count(name) > 1]:
        raise UserError(f"{path}: two columns are called {repeated[0]}; one is allowed")
    places = [header.index(name) for name in texts]
    at = header.index(label) if label in header else None
    found = []
    for idx, (number, row) in enumerate(rows):
        if task.name == "qqp" and len(row) < len(header):
            continue  # a line feed inside a question cut the row in two
        if len(row) != len(header):
            raise UserError(f"{path}: line {number} has {len(row)} fields, a line of {task.name} has {len(header)}")
        if at is None:
            value = HIDDEN_LABEL
        elif task.name == "mnli" and row[at] == NO_GOLD:
            continue
        else:
            value = _label(row[at], task, path, number)
        found.append((*(row[place] for place in places), value, idx))
    frame = pd.DataFrame(found, columns=[*task.text_columns, "label", "idx"])
    return frame.astype({"label": "float64" if task.is_regression else "int64", "idx": "int64"})


def _header(path: Path, task: Task) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the names of the columns, and an iterator of the rows below them."""
    rows = rows_of_tsv(path)
    first = next(rows)
    if task.name == "cola" and len(first[1]) == len(COLA):
        return COLA, chain([first], rows)
    return first[1], rows


def _label(value: str, task: Task, path: Path, number: int) -> int | float:
    if task.is_regression and NUMBER.fullmatch(value):
        return float(value)
    if task.labels and value in task.labels:
        return task.labels.index(value)
    if task.labels and DIGITS.fullmatch(value):
        return int(value)
    allowed = f"{', '.join(task.labels)} or their numbers" if task.labels else "numbers"
    raise UserError(f"{path}: line {number}: label {shown_key(value)} of {task.name}; allowed: {allowed}")


def _squad(path: Path) -> pd.DataFrame:
    """Return the questions of a SQuAD file, one a row, in the file's order."""
    content, rows = json_file(path), []
    for number, article in enumerate(_list(content, "data", f"{path}:")):
        where = f"{path}: data[{number}]"
        title = article.get("title", "") if isinstance(article, dict) else ""
        for place, paragraph in enumerate(_list(article, "paragraphs", where)):
            inside = f"{where}.paragraphs[{place}]"
            for turn, question in enumerate(_list(paragraph, "qas", inside)):
                answers = _list(question, "answers", f"{inside}.qas[{turn}]")
                if not all(isinstance(answer, dict) for answer in answers):
                    raise UserError(f"{inside}.qas[{turn}]: answers must be objects with text and answer_start")
                columns = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
                rows.append((question.get("id"), title, paragraph.get("context"), question.get("question"), columns))
    return pd.DataFrame(rows, columns=["id", "title", "context", "question", "answers"])


def _list(value, key: str, where: str) -> list:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{where} has no list {key}; allowed: a file in the form of SQuAD's train-v1.1.json")
    return found
