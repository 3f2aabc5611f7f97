"""Read text, JSON and parquet files from outside; a failure is one line naming file and row.

The readers of data folders, of predictions and of a user's rows use these functions. They check
types before values and sizes before contents: a wrong or hostile file costs only seconds, and no
more memory than its bound.
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

# Bounds in bytes, decompressed. The largest official files: text 203 MB (MNLI's train.tsv), JSON 42
# MB (SQuAD v2.0).
LARGEST_TABLE = 2**30
LARGEST_JSON = 2**28
LARGEST_PREDICTIONS = 2**26  # the largest test set, QQP's, takes 4 MB
PARQUET_ROWS = 1024  # rows read at once; with dictionary encoding a small file can hold large rows
BYTE_ORDER_MARK = "\ufeff"


@contextlib.contextmanager
def reading(path: Path | str, otherwise: str = "cannot be read") -> Iterator[None]:
    """Turn any error inside the block into a UserError that names `path`; a UserError passes.

    otherwise: what the UserError says, except for a missing file, a folder or a lack of permission.
    Libraries raise arbitrary errors for damaged files. Put only calls of such readers inside.
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
    """Add the file's name to an OSError without one, such as a full disk's and pyarrow's errors."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error


def text(path: Path, otherwise: str, limit: int = LARGEST_TABLE, keep_mark: bool = False) -> str:
    """Return the text of a UTF-8 file, plain or .gz; line ends are unchanged.

    A byte order mark is removed unless `keep_mark`. Raises UserError if the file cannot be read,
    has more than `limit` bytes, or is not UTF-8 (the error then says `otherwise`).
    """
    with reading(path, "not a whole gzip file" if path.suffix == ".gz" else "cannot be read"), _open(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: holds more than {_size(limit)} of text, the most that is read")
    try:
        return content.decode("utf-8" if keep_mark else "utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: {otherwise} (line {row} is not UTF-8: {one_line(error)})") from None


def check_regular(path: Path) -> None:
    """Raise UserError for a pipe, socket or device, because opening or reading it may never end.

    A folder and a missing file pass.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: not a regular file")


def _open(path: Path) -> BinaryIO:
    check_regular(path)
    return io.BufferedReader(gzip.open(path), 2**16) if path.suffix == ".gz" else path.open("rb")


def lines(content: str) -> list[str]:
    """Return the lines of a text without their ends, which are \\n or \\r\\n.

    str.splitlines also splits at U+2028, U+0085, \\x1c and others, which may occur inside a line.
    """
    found = [line.removesuffix("\r") for line in content.split("\n")]
    return found if found[-1] else found[:-1]


def rows_of_tsv(path: Path, limit: int = LARGEST_TABLE) -> Iterator[tuple[int, list[str]]]:
    """Yield each line's number, from 1, and its tab-separated fields.

    Quotation marks have no special meaning. Empty lines at the end of the file are left out. Raises
    UserError if the file is empty, cannot be read, has more than `limit` bytes or is not UTF-8.
    """
    with reading(path, "not a whole gzip file" if path.suffix == ".gz" else "cannot be read"), _open(path) as stream:
        size = number = blank = 0
        encoding = "utf-8-sig"
        while line := stream.readline(limit - size + 1):
            size += len(line)
            number += 1
            if size > limit:
                raise UserError(f"{path}: holds more than {_size(limit)} of text, the most that is read")
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
    """Return the value of a JSON text.

    Raises UserError if it is not JSON, is nested too deep or holds half of a surrogate pair.
    """
    try:
        value = json.loads(content, object_pairs_hook=pairs_hook)
        if "\\u" in content:  # only an escape can write half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds half of a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and the error for a too long number are ValueErrors
        raise UserError(f"{where} is not JSON ({one_line(error)})") from None
    return value


def json_file(path: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None, limit: int = LARGEST_JSON) -> Any:
    """Return the value of a JSON file, plain or .gz."""
    content = text(path, "not JSON", limit)
    if not content.strip():
        raise UserError(f"{path}: is empty")
    return json_of(content, str(path), pairs_hook)


# --- parquet

# Allowed values of a column, by the kind that its reader asks for; "answers" are checked row by
# row.
ALLOWED = {
    "text": "text",
    "integer": "integers",
    "number": "numbers",
    "scalar": "text or numbers",  # a prediction or a key; its reader checks the values
}


def parquet(path: Path, columns: Mapping[str, str], limit: int = LARGEST_TABLE) -> pd.DataFrame:
    """Return the named columns that the file has; its pandas index and metadata are ignored.

    columns: name -> kind, see ALLOWED, or "answers" (any type). Integers, numbers (NaN if missing)
    and text become columns of their type, other values Python objects. Raises UserError if the file
    is no parquet table or has more than `limit` bytes in these columns, if a column is there twice
    or of another kind, if an integer is missing, or if text is not UTF-8.
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
                raise UserError(f"{path}: holds more than {_size(limit)} in {', '.join(there)}, the most that is read")
            batches.append(batch)
        table = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in there]))
        rows = file.metadata.num_rows
    return pd.DataFrame({name: _column(table[name], columns[name], name, path) for name in there}, index=range(rows))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds text, dictionary-encoded (categorical) or not."""
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
    """Return the values of one column, whose type `_check_type` has accepted for `kind`."""
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
        column.validate(full=True)  # raises the suppressed error, if no row explained it
    raise AssertionError(name)


def _size(limit: int) -> str:
    return f"{limit >> 20:,} MiB"
