"""What this machine has to offer a process, on Linux and macOS."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of cores that this process may use; of all cores if the system lets no process be pinned (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
