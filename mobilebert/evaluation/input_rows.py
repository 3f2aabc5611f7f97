"""Read the rows to predict: those of a task's split, for scores, or a user's."""

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
    """Return the splits of a command: the one it names, else the validation splits that exist.

    The first validation split is always returned: reading it reports if it is missing.
    """
    if split is not None:
        return [split]
    first = "validation" if "validation" in task.splits else "test"  # AX has no other
    mismatched = task.splits.get("validation_mismatched")
    if mismatched and (data == "hub" or _file(Path(data).expanduser(), task, mismatched).is_file()):
        return [first, "validation_mismatched"]
    return [first]


def _file(folder: Path, task: Task, stem: str) -> Path:
    """Return the file of a split in a data folder.

    It is the first of the allowed names that exists, else the parquet file.
    """
    files = [folder / name for name in tables.names(task, stem)]
    return next((file for file in files if file.is_file()), files[0])


def read_table(data: str, task: Task, split: str) -> pd.DataFrame:
    """Return the rows of one split.

    data: a data folder, `hub`, or a file, parquet or in the benchmark's format. A folder with
    SHA256SUMS is checked against it. Raises UserError for what `tables.checked` refuses.
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
    """Return the rows of one split, as `read_table` does, for scores.

    Raises UserError also if its labels are hidden, because nothing can be scored on it.
    """
    frame = read_table(data, task, split)
    if not task.is_squad and (frame["label"] == HIDDEN_LABEL).to_numpy().any():
        raise UserError(f"{data}: {task.name} has hidden labels (-1) in this split; only a labelled split can be scored")
    return frame


def read_rows(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Return a user's rows from a .parquet, .jsonl, or .tsv file (with a header).

    columns: those to read from a parquet file; the other formats are read whole.
    Raises UserError for a file in no such format.
    """
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
    """Return a .tsv file with every field as text.

    Each line is a row, even a blank one unless it is at the end. There are no quotes, and only line
    feeds end a line. Raises UserError for repeated columns or rows of another length.
    """
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
