"""Rows from files: those of a task's split, which predictions are scored on, or a user's own."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import pandas as pd

from mobilebert.data.glue import HIDDEN_LABEL, Task, check_table
from mobilebert.data.sources import one_line, open_source
from mobilebert.errors import UserError


def splits(data: str, task: Task, split: str | None) -> list[str]:
    """The splits that a command means: the one it names, else the validation splits that are there.

    The first of these is taken for granted: reading it says what is missing.
    """
    if split is not None:
        return [split]
    first = "validation" if "validation" in task.splits else "test"  # AX has no other
    mismatched = task.splits.get("validation_mismatched")
    if mismatched and (data == "hub" or (Path(data).expanduser() / task.folder / f"{mismatched}.parquet").is_file()):
        return [first, "validation_mismatched"]
    return [first]


def read_table(data: str, task: Task, split: str) -> pd.DataFrame:
    """The rows of one split. data: a data folder, `hub`, or the parquet file itself.

    A folder with SHA256SUMS is checked against it. Raises UserError for what `check_table` refuses.
    """
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; allowed: {', '.join(task.splits)}")
    stem, path = task.splits[split], Path(data).expanduser()
    if data == "hub" and not path.exists():
        return open_source("hub").table(task.name, stem)
    if (path / "SHA256SUMS").is_file():
        return open_source(f"local:{path}").table(task.name, stem)
    if not path.is_file():
        path = path / task.folder / f"{stem}.parquet"
    frame = parquet(path)
    hidden = "label" in frame and len(frame) and (frame["label"] == HIDDEN_LABEL).all()
    check_table(frame, task, "test" if hidden and "test" in task.splits else split, str(path))
    return frame


def labelled_table(data: str, task: Task, split: str) -> pd.DataFrame:
    """As `read_table`; also raises UserError for a split whose labels are hidden: nothing can be scored on it."""
    frame = read_table(data, task, split)
    if not task.is_squad and (frame["label"] == HIDDEN_LABEL).any():
        raise UserError(f"{data}: {task.name} has hidden labels (-1) in this split; only a labelled split can be scored")
    return frame


def parquet(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet file ({one_line(error)})") from error


def read_rows(path: Path) -> pd.DataFrame:
    """A user's own rows: .parquet, .jsonl, or .tsv with a header."""
    if path.suffix == ".parquet":
        return parquet(path)
    if path.suffix == ".tsv":
        return tsv(path)
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: rows are read from .tsv, .jsonl or .parquet")
    rows = []
    try:
        for line in text(path, "not JSON lines").split("\n"):  # splitlines would also cut at U+2028 inside a text
            if line.strip():
                rows.append(json.loads(line))
                json.dumps(rows[-1], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: row {len(rows) - 1} holds half of a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: row {len(rows)} is not JSON ({one_line(error)})") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every line must be a JSON object")
    return pd.DataFrame(rows)


def tsv(path: Path) -> pd.DataFrame:
    """Every field as text. A line is a row, also a blank one but at the end; no mark quotes, no other character ends a line."""
    what = "not a readable table of tab-separated values"
    lines = [line.removesuffix("\r") for line in text(path, what).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path}: is empty")
    header, *rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise UserError(f"{path}: {what} (row {number} has {len(row)} fields, its header {len(header)})")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns of one name: {', '.join(header)}")
    return pd.DataFrame(dict(zip(header, zip(*rows)))) if rows else pd.DataFrame(columns=header)


def text(path: Path, otherwise: str) -> str:
    """A file of UTF-8, with or without a byte order mark, plain or .gz. Raises UserError that says `otherwise` for any other."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({one_line(error)})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {otherwise} ({one_line(error)})") from None
