"""Progress bars: tqdm on a terminal, a line every ten seconds in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, what: str, done: int = 0, unit: str = "step") -> tqdm:
    """A bar with rate and ETA on standard error; `done` of `total` were finished before. One inside another goes when it ends."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        leave=None,
        mininterval=interval,
        dynamic_ncols=True,
        smoothing=0.1,
        file=sys.stderr,
    )
