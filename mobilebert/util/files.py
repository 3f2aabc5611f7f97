"""Write files atomically, hash them, and make values fit for JSON."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any, cast


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers, and the disk after a power cut, have the old or the new one.

    A device or a pipe, such as /dev/null, is written to: a rename would replace it.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        settle(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def settle(part: Path, path: Path) -> None:
    """Rename the written file `part` to `path`. Sync the file before and the folder after, so that
    a power cut leaves at least the old file."""
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_safe(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and infinity, which it lacks, become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        return json_safe(cast(Any, value).item())
    return value
