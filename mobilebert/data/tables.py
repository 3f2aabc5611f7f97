"""Read a task's rows as a table, from parquet or from the benchmarks' original files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from mobilebert.data import raw, reading
from mobilebert.data.glue import check_table, plain_answers
from mobilebert.study.tasks import Task
from mobilebert.util.errors import UserError, shown_key

KINDS = {"text": "text", "integer": "integer", "class": "integer", "score": "number", "answers": "answers"}
HEXADECIMAL = frozenset("0123456789abcdef")


def names(task: Task, stem: str) -> list[str]:
    """Return the files in a data folder that may hold a split; the first that exists is read."""
    return [f"{task.folder}/{stem}.parquet", *raw.names(task, stem)]


def read(path: Path, task: Task) -> pd.DataFrame:
    """Return the rows of one file, parquet, .tsv (GLUE) or .json (SQuAD).

    `checked` must check the values.
    """
    if path.suffix in (".tsv", ".json"):
        return raw.read(path, task)
    return reading.parquet(path, {name: KINDS[kind] for name, kind in task.columns.items()})


def checked(frame: pd.DataFrame, task: Task, role: str, where: str) -> pd.DataFrame:
    """Return the table with `answers` as plain lists, the form that scorers need.

    Raises UserError if `check_table` does.
    """
    check_table(frame, task, role, where)
    if task.is_squad:
        frame = frame.assign(answers=pd.Series([plain_answers(answers, where) for answers in frame["answers"]], frame.index))
    return frame


def sums(path: Path) -> dict[str, str]:
    """Return the file names in a SHA256SUMS, relative to its folder, with their hashes.

    Raises UserError, naming the line, if `sha256sum` does not write such a line, if the file is
    outside the folder, and if a file has two hashes. A link inside the folder may point outside:
    the hash then checks its target.
    """
    found: dict[str, str] = {}
    content = reading.text(path, "not a file of sha256sum", reading.LARGEST_PREDICTIONS)
    for number, line in enumerate(reading.lines(content), 1):
        if not line:
            continue
        digest, mark, name = line[:64].lower(), line[64:66], line[66:]
        if not (set(digest) <= HEXADECIMAL and mark in ("  ", " *") and name.strip()):
            raise UserError(
                f"{path}: line {number} is not 64 hexadecimal digits and a file, as sha256sum writes it: {shown_key(line)}"
            )
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise UserError(f"{path}: line {number} names {shown_key(name)}, which is outside of the folder")
        if found.setdefault(str(place), digest) != digest:
            raise UserError(f"{path}: line {number} has another hash of {shown_key(name)} than a line before it")
    return found
