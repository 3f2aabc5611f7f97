"""Write files atomically, hash them, and make values fit for JSON."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any, cast


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one; a power cut leaves one of the two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        settle(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def settle(part: Path, path: Path) -> None:
    """Give a file that is written its name. The file is on the disk before it is renamed, the folder after: no power cut
    leaves less than the old file."""
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
    """NaN and infinity are not JSON; a record says null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        return json_safe(cast(Any, value).item())
    return value
