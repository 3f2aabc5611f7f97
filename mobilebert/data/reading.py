"""Read what comes from outside: text, JSON and parquet files. Every failure becomes one line that names the file and the row.

The readers of data folders, of predictions and of a user's own rows are built on these functions. They check types before
values and sizes before contents, so that a wrong or hostile file costs seconds and no more memory than its bound.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mobilebert.util.errors import UserError, one_line, shown_key

# Bounds in bytes, decompressed. The largest official files have 203 MB as text (MNLI's train.tsv), 42 MB as JSON (SQuAD v2.0).
LARGEST_TABLE = 2**30
LARGEST_JSON = 2**28
LARGEST_PREDICTIONS = 2**26  # the largest test set, QQP's, takes 4 MB
PARQUET_ROWS = 1024  # read at once: a dictionary may make a row of a small file large
BYTE_ORDER_MARK = "\ufeff"


@contextlib.contextmanager
def reading(path: Path | str, otherwise: str = "cannot be read") -> Iterator[None]:
    """Raise UserError, which names `path` and says `otherwise`, for any error in this block.

    Readers of damaged files raise what they like. Put only calls of such readers inside.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: cannot be read (a folder); a file is allowed") from None
    except PermissionError:
        raise UserError(f"{path}: cannot be read (no permission)") from None
    except Exception as error:
        raise UserError(f"{path}: {otherwise} ({one_line(error)})") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an OSError that does not: the one of a full disk does not, nor do those of pyarrow."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error


def text(path: Path, otherwise: str, limit: int = LARGEST_TABLE, keep_mark: bool = False) -> str:
    """Return a file of UTF-8, plain or .gz, without its byte order mark. Line ends stay as they are.

    Raises UserError, which says `otherwise` where the content is not UTF-8, and for more than `limit` bytes.
    """
    with reading(path, "not a whole gzip file" if path.suffix == ".gz" else "cannot be read"), _open(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: holds more than {_size(limit)} of text; such a file is not read")
    try:
        return content.decode("utf-8" if keep_mark else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: {otherwise} (line {row} is not UTF-8: {one_line(error)})") from None


def check_regular(path: Path) -> None:
    """Raise UserError for a pipe, a socket or a device: to open or read one may never end. A folder and no file pass."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: not a regular file")


def _open(path: Path) -> BinaryIO:
    check_regular(path)
    return io.BufferedReader(gzip.open(path), 2**16) if path.suffix == ".gz" else path.open("rb")


def lines(content: str) -> list[str]:
    """Return the lines of a text, each a record, without their ends: a line feed, or a carriage return and a line feed.

    str.splitlines also splits at U+2028, U+0085, \\x1c and others, which may stand inside a record.
    """
    found = [line.removesuffix("\r") for line in content.split("\n")]
    return found if found[-1] else found[:-1]


def rows_of_tsv(path: Path, limit: int = LARGEST_TABLE) -> Iterator[tuple[int, list[str]]]:
    """Read the lines of a file one by one: the line's number from 1, and its fields, which tabs separate. No mark quotes.

    Empty lines at the end of the file are left out. Raises UserError for an empty file, and see `text`.
    """
    with reading(path, "not a whole gzip file" if path.suffix == ".gz" else "cannot be read"), _open(path) as stream:
        size = number = blank = 0
        encoding = "utf-8-sig"
        while line := stream.readline(limit - size + 1):
            size += len(line)
            number += 1
            if size > limit:
                raise UserError(f"{path}: holds more than {_size(limit)} of text; such a file is not read")
            try:
                fields = line.removesuffix(b"\n").removesuffix(b"\r").decode(encoding)
            except UnicodeDecodeError as error:
                what = "not a readable table of tab-separated values"
                raise UserError(f"{path}: {what} (line {number} is not UTF-8: {one_line(error)})") from None
            encoding = "utf-8"
            if fields:
                yield from ((number - ahead, [""]) for ahead in range(blank, 0, -1))
                blank = 0
                yield number, fields.split("\t")
            else:
                blank += 1
    if blank == number:
        raise UserError(f"{path}: is empty")


def json_of(content: str, where: str, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the value of a JSON text. Raises UserError where it is none, is nested too deep, or holds half a character."""
    try:
        value = json.loads(content, object_pairs_hook=pairs_hook)
        if "\\u" in content:  # the only way to write half a character
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds half of a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError, and so is what a number too long raises
        raise UserError(f"{where} is not JSON ({one_line(error)})") from None
    return value


def json_file(path: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None, limit: int = LARGEST_JSON) -> Any:
    """Return the value of a JSON file, plain or .gz."""
    content = text(path, "not JSON", limit)
    if not content.strip():
        raise UserError(f"{path}: is empty")
    return json_of(content, str(path), pairs_hook)


# --- parquet

# What a column may hold, by the kind that its reader asks for; "answers" are checked row by row.
ALLOWED = {
    "text": "text",
    "integer": "integers",
    "number": "numbers",
    "scalar": "text or numbers",  # a prediction or a key; its reader checks the values
}


def parquet(path: Path, columns: Mapping[str, str], limit: int = LARGEST_TABLE) -> pd.DataFrame:
    """Return those of the named columns that the file has, whatever an index or metadata beside them says.

    columns: name -> kind, see ALLOWED, or "answers" (any type). Integers, numbers (NaN for a missing one) and text become
    columns of their type, other values Python objects. Raises UserError for a file that is no parquet table, a column that is
    there twice or of another kind, a missing integer, text that is not UTF-8, and for more than `limit` bytes.
    """
    what = "not a readable parquet file"
    if not path.exists():
        raise UserError(f"{path}: no such file")
    check_regular(path)
    if not path.is_file():
        raise UserError(f"{path}: {what} (not a file)")
    with reading(path, what), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        there = [name for name in columns if name in schema.names]
        for name in there:
            if schema.names.count(name) > 1:
                raise UserError(f"{path}: {schema.names.count(name)} columns are called {name}; one is allowed")
            _check_type(schema.field(name).type, columns[name], name, path)
        batches, size = [], 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=there) if there else ():
            size += batch.nbytes
            if size > limit:
                raise UserError(f"{path}: holds more than {_size(limit)} in {', '.join(there)}; such a file is not read")
            batches.append(batch)
        table = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in there]))
        rows = file.metadata.num_rows
    return pd.DataFrame({name: _column(table[name], columns[name], name, path) for name in there}, index=range(rows))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type, or a dictionary-encoded (categorical) one of its values, holds text."""
    types, plain = pa.types, _plain(kind)
    return types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_type(given: pa.DataType, kind: str, name: str, path: Path) -> None:
    is_integer = pa.types.is_integer(_plain(given))
    is_number = is_integer or pa.types.is_floating(_plain(given))
    good = {
        "text": is_text(given),
        "integer": is_integer,
        "number": is_number,
        "scalar": is_text(given) or is_number,
        "answers": True,
    }
    if not (good[kind] or pa.types.is_null(given)):
        raise UserError(f"{path}: column {name} is of type {shown_key(given)}; allowed: {ALLOWED[kind]}")


def _column(column: pa.ChunkedArray, kind: str, name: str, path: Path) -> pd.Series:
    """The values of one column; `kind` is the one that its type was checked for."""
    with reading(path, f"column {name} cannot be read"):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        with contextlib.suppress(pa.ArrowInvalid):
            column.validate(full=True)
            if kind in ("integer", "number"):
                if kind == "integer" and column.null_count:
                    row = column.is_null().index(True).as_py()
                    raise UserError(f"{path}: column {name} has no value in row {row}; allowed: {ALLOWED[kind]}")
                return pd.Series(column.to_numpy())
            return pd.Series(column.to_pylist(), dtype="str" if kind == "text" else object)
        for row, value in enumerate(column.cast(pa.large_binary()) if kind != "answers" else ()):
            try:
                (value.as_py() or b"").decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: column {name} is not UTF-8 in row {row} ({one_line(error)})") from None
        column.validate(full=True)  # raises again
    raise AssertionError(name)


def _size(limit: int) -> str:
    return f"{limit >> 20:,} MiB"
