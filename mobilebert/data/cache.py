"""Arrays made from texts once and then read from disk: named by the hash of what they depend on, memory-mapped.

Models that share a tokenizer share a folder, and so may processes that run at the same time.
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

MAKERS = ("mobilebert.data.examples", "mobilebert.data.squad", "mobilebert.data.glue")  # another code makes other arrays
NAMES = "names.json"  # of a folder's arrays, so that one that is missing is missed
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Inside this block `arrays` keeps what it makes in `folder`, and takes what is there."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def arrays(make: Callable[[], dict[str, np.ndarray]], *made_of) -> dict[str, np.ndarray]:
    """Return what `make()` returns, or what it returned before for the same `made_of` (anything that JSON can hold).

    The arrays are read-only views of mapped files if `kept_in` names a folder, and fresh ones if not.
    """
    folder = _folder.get()
    if folder is None:
        return make()
    place = folder / digest([made_of, syntax_hash(*MAKERS), metadata.version("tokenizers")])
    if not place.is_dir():
        _write(place, make())
    try:
        return _read(place)
    except (OSError, EOFError, ValueError):  # a file that was cut short or removed: made again
        shutil.rmtree(place, ignore_errors=True)
        _write(place, make())
        return _read(place)


def _read(place: Path) -> dict[str, np.ndarray]:
    """Raises OSError, EOFError or ValueError where the folder does not hold every array, whole."""
    names = json.loads((place / NAMES).read_text(encoding="utf-8"))
    return {name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in names}


def _write(place: Path, made: dict[str, np.ndarray]) -> None:
    """A folder appears whole or not at all; of two processes that make the same one, the second's is thrown away."""
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
        with contextlib.suppress(OSError):  # it is there now, and a folder that holds files is not replaced
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if not place.is_dir():
        raise OSError(f"{place}: cannot be written")
