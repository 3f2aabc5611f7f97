"""The documents of one corpus file, read as a stream: no file is held in memory, whatever its size.

    *.txt       a paragraph a line, blank lines between documents
    *.jsonl     an object a line with the key "text"
    *.parquet   a column "text"

The first two may be compressed: *.txt.xz, *.txt.gz, *.jsonl.xz, *.jsonl.gz. A document, and so a line, has a bound: what a
small compressed file expands to does not fill the memory.
"""

import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mobilebert.data.reading import is_text, reading
from mobilebert.util.errors import UserError, one_line, shown_key

SUFFIXES = (".txt", ".txt.xz", ".txt.gz", ".jsonl", ".jsonl.xz", ".jsonl.gz", ".parquet")
_OPEN = {".xz": lzma.open, ".gz": gzip.open}
PARQUET_ROWS = 64  # read at once: a row may be a book


# Bytes of a document. The Bible has 4 MB; a document takes some 50 times its size while it is tokenized.
LARGEST_DOCUMENT = 2**24


def read_documents(path: Path) -> Iterator[tuple[str, float]]:
    """Document and the share of the file, 0 to 1, that was read with it.

    Raises UserError, with the row, for a row without text, of another form or longer than LARGEST_DOCUMENT, for a damaged file
    and for one without a document.
    """
    read = _parquet if path.suffix == ".parquet" else _jsonl if ".jsonl" in path.suffixes else _txt
    empty = True
    with reading(path):
        for found in read(path):
            empty = False
            yield found
    if empty:
        raise UserError(f"{path}: holds no document")


def _lines(path: Path) -> Iterator[tuple[str, float]]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        stream = io.BufferedReader(_OPEN[path.suffix](raw), 2**16) if path.suffix in _OPEN else raw
        encoding = "utf-8-sig"  # a byte order mark, which some editors write, is no text
        number = 0
        while line := stream.readline(LARGEST_DOCUMENT + 1):
            number += 1
            if len(line) > LARGEST_DOCUMENT:
                raise UserError(f"{path}: line {number} is longer than {LARGEST_DOCUMENT >> 20} MiB")
            try:
                yield line.decode(encoding), raw.tell() / size
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: cannot be read (line {number} is not UTF-8: {one_line(error)})") from None
            encoding = "utf-8"


def _txt(path: Path) -> Iterator[tuple[str, float]]:
    paragraphs: list[str] = []
    size = start = 0
    for number, (line, share) in enumerate(_lines(path), 1):
        if line := line.strip():
            start, size = (start, size + len(line)) if paragraphs else (number, len(line))
            if size > LARGEST_DOCUMENT:
                raise UserError(
                    f"{path}: the document that begins in line {start} is longer than {LARGEST_DOCUMENT >> 20} MiB; "
                    "blank lines stand between documents"
                )
            paragraphs.append(line)
        elif paragraphs:
            yield "\n".join(paragraphs), share
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs), 1.0


def _jsonl(path: Path) -> Iterator[tuple[str, float]]:
    for number, (line, share) in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield _text(row.get("text") if isinstance(row, dict) else None, path, number), share


def _parquet(path: Path) -> Iterator[tuple[str, float]]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if names.count("text") != 1:
            raise UserError(f"{path}: {names.count('text') or 'no'} column text; there: {', '.join(names)}")
        kind = file.schema_arrow.field("text").type
        if not is_text(kind):
            raise UserError(f"{path}: column text is of type {shown_key(kind)}; allowed: text")
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=["text"]):
            for value in _values(batch.column(0)):
                number += 1
                yield _text(value, path, number), number / file.metadata.num_rows


def _values(column: pa.Array) -> list[str | bytes]:
    """The texts of a column; as bytes, if one of them is not UTF-8 or longer than a document may be."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    raw = column.cast(pa.large_binary())
    longest = pc.call_function("max", [pc.call_function("binary_length", [raw])]).as_py() or 0
    try:
        return (column if longest <= LARGEST_DOCUMENT else raw).to_pylist()
    except UnicodeDecodeError:
        return raw.to_pylist()


def _text(value, path: Path, number: int) -> str:
    if isinstance(value, str | bytes) and len(value) > LARGEST_DOCUMENT:
        raise UserError(f"{path}: row {number} is longer than {LARGEST_DOCUMENT >> 20} MiB")
    try:
        # JSON may name half a character, parquet may hold bytes that are none.
        value = value.decode() if isinstance(value, bytes) else value
        if isinstance(value, str) and value.strip() and value.encode():
            return value
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {number} is not UTF-8 ({one_line(error)})") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: row {number} has half of a surrogate pair, which is no character") from None
    raise UserError(f"{path}: row {number} has no text")
