"""A task's rows as a table, whichever form its files have: parquet, or the files that the benchmarks themselves distribute."""

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
    """Return where a split may lie below a data folder; the first that is there is read."""
    return [f"{task.folder}/{stem}.parquet", *raw.names(task, stem)]


def read(path: Path, task: Task) -> pd.DataFrame:
    """Return the rows of one file, parquet, .tsv (GLUE) or .json (SQuAD), which `checked` has to look at."""
    if path.suffix in (".tsv", ".json"):
        return raw.read(path, task)
    return reading.parquet(path, {name: KINDS[kind] for name, kind in task.columns.items()})


def checked(frame: pd.DataFrame, task: Task, role: str, where: str) -> pd.DataFrame:
    """Return the table with `answers` as plain lists, which scorers take. Raises UserError for what `check_table` refuses."""
    check_table(frame, task, role, where)
    if task.is_squad:
        frame = frame.assign(answers=[plain_answers(answers, where) for answers in frame["answers"]])
    return frame


def sums(path: Path) -> dict[str, str]:
    """Return the file names of a SHA256SUMS, relative to its folder, with their hashes.

    Raises UserError, with the line, for a line that `sha256sum` does not write, a name outside the folder, and for a file with
    two hashes. A link inside the folder may lead out of it: the hash says what it has to lead to.
    """
    found: dict[str, str] = {}
    content = reading.text(path, "not a file of sha256sum", reading.LARGEST_PREDICTIONS)
    for number, line in enumerate(reading.lines(content), 1):
        if not line:
            continue
        digest, mark, name = line[:64].lower(), line[64:66], line[66:]
        if not (set(digest) <= HEXADECIMAL and mark in ("  ", " *") and name.strip()):
            raise UserError(f"{path}: line {number} is not 64 hexadecimal digits and a file, as of sha256sum: {shown_key(line)}")
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise UserError(f"{path}: line {number} names {shown_key(name)}, which is outside of the folder")
        if found.setdefault(str(place), digest) != digest:
            raise UserError(f"{path}: line {number} has another hash of {shown_key(name)} than a line before it")
    return found
