"""Keep arrays computed from texts on disk, named by the hash of their inputs, and memory-map them.

Models that share a tokenizer share a folder, and several processes may use it at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path

import numpy as np

from mobilebert.data.reading import writing
from mobilebert.study.code_hash import digest, syntax_hash

MAKERS = ("mobilebert.data.examples", "mobilebert.data.squad", "mobilebert.data.glue")  # names depend on their code
NAMES = "names.json"  # the list of a folder's arrays, so that a missing one is noticed
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Make `arrays` read from and write to `folder` inside the block."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def arrays(make: Callable[[], dict[str, np.ndarray]], *made_of) -> dict[str, np.ndarray]:
    """Return the arrays of `make()`, by name; from disk if they were computed before.

    made_of: all that the arrays depend on besides the code, in any form that JSON can hold. The
    arrays are read-only views of mapped files if `kept_in` names a folder, and otherwise newly
    computed.
    """
    folder = _folder.get()
    if folder is None:
        return make()
    place = folder / digest([made_of, syntax_hash(*MAKERS), metadata.version("tokenizers")])
    if not place.is_dir():
        _write(place, make())
    try:
        return _read(place)
    except (OSError, EOFError, ValueError):  # a file was cut short or removed
        shutil.rmtree(place, ignore_errors=True)
        _write(place, make())
        return _read(place)


def _read(place: Path) -> dict[str, np.ndarray]:
    """Return a folder's arrays.

    Raises OSError, EOFError or ValueError if one is missing or incomplete.
    """
    names = json.loads((place / NAMES).read_text(encoding="utf-8"))
    return {name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in names}


def _write(place: Path, made: dict[str, np.ndarray]) -> None:
    """Write a folder completely or not at all.

    If two processes write the same one, the second's is discarded. Raises OSError if it cannot be
    written.
    """
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        for name, array in made.items():
            file = part / f"{name}.npy"
            with writing(file), file.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        with writing(part / NAMES):
            (part / NAMES).write_text(json.dumps(sorted(made)), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process wrote it first: rename does not replace a folder with files
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if not place.is_dir():
        raise OSError(f"{place}: cannot be written")
