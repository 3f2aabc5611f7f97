"""Rows from files: those of a task's split, which predictions are scored on, or a user's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mobilebert.data import tables
from mobilebert.data.reading import LARGEST_TABLE, check_regular, json_of, lines, parquet, rows_of_tsv, text
from mobilebert.data.sources import open_source
from mobilebert.study.tasks import HIDDEN_LABEL, Task
from mobilebert.util.errors import UserError, shown_key


def splits(data: str, task: Task, split: str | None) -> list[str]:
    """The splits that a command means: the one it names, else the validation splits that are there.

    The first of these is taken for granted: reading it says what is missing.
    """
    if split is not None:
        return [split]
    first = "validation" if "validation" in task.splits else "test"  # AX has no other
    mismatched = task.splits.get("validation_mismatched")
    if mismatched and (data == "hub" or _file(Path(data).expanduser(), task, mismatched).is_file()):
        return [first, "validation_mismatched"]
    return [first]


def _file(folder: Path, task: Task, stem: str) -> Path:
    """The file of a split in a data folder: of the forms that may lie there the first that does, else the parquet file."""
    files = [folder / name for name in tables.names(task, stem)]
    return next((file for file in files if file.is_file()), files[0])


def read_table(data: str, task: Task, split: str) -> pd.DataFrame:
    """The rows of one split. data: a data folder, `hub`, or the file itself: parquet, or as the benchmark distributes it.

    A folder with SHA256SUMS is checked against it. Raises UserError for what `check_table` refuses.
    """
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; allowed: {', '.join(task.splits)}")
    stem, path = task.splits[split], Path(data).expanduser()
    check_regular(path)
    if data == "hub" and not path.exists():
        return open_source("hub").table(task.name, stem)
    if (path / "SHA256SUMS").is_file():
        return open_source(f"local:{path}").table(task.name, stem)
    if not path.is_file():
        path = _file(path, task, stem)
    frame = tables.read(path, task)
    hidden = "label" in frame and len(frame) and bool((frame["label"] == HIDDEN_LABEL).to_numpy().all())
    return tables.checked(frame, task, "test" if hidden and "test" in task.splits else split, str(path))


def labelled_table(data: str, task: Task, split: str) -> pd.DataFrame:
    """As `read_table`; also raises UserError for a split whose labels are hidden: nothing can be scored on it."""
    frame = read_table(data, task, split)
    if not task.is_squad and (frame["label"] == HIDDEN_LABEL).to_numpy().any():
        raise UserError(f"{data}: {task.name} has hidden labels (-1) in this split; only a labelled split can be scored")
    return frame


def read_rows(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A user's own rows: .parquet, .jsonl, or .tsv with a header. columns: those that are read of a parquet file."""
    if path.suffix == ".parquet":
        return parquet(path, dict.fromkeys(columns, "scalar"))
    if path.suffix == ".tsv":
        return tsv(path)
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: rows are read from .tsv, .jsonl or .parquet")
    rows = []
    for line in lines(text(path, "not JSON lines")):
        if line.strip():
            rows.append(json_of(line, f"{path}: row {len(rows)}"))
            if not isinstance(rows[-1], dict):
                raise UserError(f"{path}: row {len(rows) - 1}: every line must be a JSON object")
    return pd.DataFrame(rows)


def tsv(path: Path, limit: int = LARGEST_TABLE) -> pd.DataFrame:
    """Every field as text. A line is a row, also a blank one but at the end; no mark quotes, no other character ends a line."""
    found = rows_of_tsv(path, limit)
    _, header = next(found)
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns of one name: {shown_key(', '.join(header))}")
    rows = []
    for number, row in enumerate(fields for _, fields in found):
        if len(row) != len(header):
            what = "not a readable table of tab-separated values"
            raise UserError(f"{path}: {what} (row {number} has {len(row)} fields, its header {len(header)})")
        rows.append(row)
    return pd.DataFrame(dict(zip(header, zip(*rows)))) if rows else pd.DataFrame(columns=header)
