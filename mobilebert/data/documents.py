"""Read the documents of one corpus file as a stream; no file is held in memory, whatever its size.

    *.txt       a paragraph a line, blank lines between documents
    *.jsonl     an object a line with the key "text"
    *.parquet   a column "text"

The first two may be compressed: *.txt.xz, *.txt.gz, *.jsonl.xz, *.jsonl.gz. The size of a document,
and so of a line, is bounded: a small compressed file cannot expand to fill the memory.
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
PARQUET_ROWS = 64  # rows read at once; a row may be a book


# In bytes. The Bible has 4 MB; tokenizing takes some 50 times a document's size in memory.
LARGEST_DOCUMENT = 2**24


def read_documents(path: Path) -> Iterator[tuple[str, float]]:
    """Yield each document, and the share of the file (0 to 1) that was read by then.

    Raises UserError, naming the row, if a row has no text, has another form or is longer than
    LARGEST_DOCUMENT; and if the file is damaged or has no document.
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
        encoding = "utf-8-sig"  # for the first line: drops the byte order mark that some editors write
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
                    "separate documents with blank lines"
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
    """Return a column's texts; as bytes if one is not UTF-8 or longer than LARGEST_DOCUMENT."""
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
        # JSON can hold half of a surrogate pair, parquet can hold bytes that are not UTF-8.
        value = value.decode() if isinstance(value, bytes) else value
        if isinstance(value, str) and value.strip() and value.encode():
            return value
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {number} is not UTF-8 ({one_line(error)})") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: row {number} has half of a surrogate pair, which is no character") from None
    raise UserError(f"{path}: row {number} has no text")
