"""Kernel locks, one for each run and one for a results folder: gone with their process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mobilebert.util.errors import UserError


def lock_of(state: Path) -> Path:
    """The lock that a run holds, beside its state folder: it outlives the folder."""
    return state.with_name(f"{state.name}.lock")


def is_live(state: Path) -> bool:
    """Whether a process holds the lock of this run."""
    try:
        with lock_of(state).open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def lock(path: Path, message: str, leader: str = "") -> Iterator[None]:
    """A kernel lock, gone with its process however that ends. `leader`: the job that takes another's run upon it.

    Raises UserError with `message` where it is held, but waits, and says so, for one that a leader holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        for attempt in range(5):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt < 4:
                    time.sleep(0.1)  # tracking holds it for an instant, to see whether a run is alive
                    continue
                if leader or not (held_by := path.read_text()):
                    raise UserError(message) from None
                print(f"mobilebert: waiting for {held_by}, which trains this student beside its own", file=sys.stderr, flush=True)
                fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)  # what a leader that was killed has left
        stream.write(leader)
        stream.flush()
        yield
