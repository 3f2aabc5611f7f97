"""Progress bars: tqdm on a terminal, a line every ten seconds in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, what: str, done: int = 0, unit: str = "step") -> tqdm:
    """A bar with rate and ETA on standard error; `done` of `total` were finished before. A bar inside another is cleared when it
    ends, on a terminal."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        leave=None,
        mininterval=0.2 if terminal else 10.0,
        position=None if terminal else 0,  # a log has no second line to go up from
        dynamic_ncols=True,
        smoothing=0.1,
        file=sys.stderr,
    )
