"""Count the cores of this machine, on Linux and macOS."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores that this process may use; all on macOS, which pins no process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
