"""Take kernel locks, for each job and for a results folder; a lock ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from mobilebert.util.errors import UserError

logger = logging.getLogger(__name__)


def lock_of(state: Path) -> Path:
    """Return the lock file of a saved state; it lies beside the folder and outlives it."""
    return state.with_name(f"{state.name}.lock")


def is_live(state: Path) -> bool:
    """Return whether a process holds the lock of this saved state."""
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
    """Hold a kernel lock on `path` in this block; if the process dies, the kernel releases it.

    leader: the name of the calling job if it takes another job's lock, to train that job's student
        beside its own; else "".

    If a leader holds the lock, log that and wait for it; a leader itself never waits. Raises
    UserError with `message` if the caller may not wait and the lock stays held for 0.4 seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        for attempt in range(5):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt < 4:
                    time.sleep(0.1)  # `is_live` holds the lock for an instant
                    continue
                if leader or not (held_by := path.read_text()):
                    raise UserError(message) from None
                logger.warning("waiting for %s, which trains this student beside its own", held_by)
                fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)  # a killed leader leaves its name
        stream.write(leader)
        stream.flush()
        yield
