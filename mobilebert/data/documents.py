"""The documents of one corpus file, read as a stream: no file is held in memory, whatever its size.

    *.txt       a paragraph a line, blank lines between documents
    *.jsonl     an object a line with the key "text"
    *.parquet   a column "text"

The first two may be compressed: *.txt.xz, *.txt.gz, *.jsonl.xz, *.jsonl.gz.
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from mobilebert.errors import UserError

SUFFIXES = (".txt", ".txt.xz", ".txt.gz", ".jsonl", ".jsonl.xz", ".jsonl.gz", ".parquet")
_OPEN = {".xz": lzma.open, ".gz": gzip.open}
PARQUET_ROWS = 64  # read at once: a row may be a book


def read_documents(path: Path) -> Iterator[tuple[str, float]]:
    """Document and the share of the file, 0 to 1, that was read with it.

    Raises UserError, with the row, for a row without text or of another form, and for a damaged file.
    """
    read = _parquet if path.suffix == ".parquet" else _jsonl if ".jsonl" in path.suffixes else _txt
    try:
        yield from read(path)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error


def _lines(path: Path) -> Iterator[tuple[str, float]]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        encoding = "utf-8-sig"  # a byte order mark, which some editors write, is no text
        for line in _OPEN[path.suffix](raw) if path.suffix in _OPEN else raw:
            yield line.decode(encoding), raw.tell() / size
            encoding = "utf-8"


def _txt(path: Path) -> Iterator[tuple[str, float]]:
    paragraphs: list[str] = []
    for line, share in _lines(path):
        if line := line.strip():
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
        except ValueError:
            row = None
        yield _text(row.get("text") if isinstance(row, dict) else None, path, number), share


def _parquet(path: Path) -> Iterator[tuple[str, float]]:
    with pq.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise UserError(f"{path}: no column text; there: {', '.join(file.schema_arrow.names)}")
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=["text"]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _text(value, path, number), number / file.metadata.num_rows


def _text(value, path: Path, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: row {number} has no text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may name half a character
        raise UserError(f"{path}: row {number} has half of a surrogate pair, which is no character") from None
    return value
