"""Define a cell of a table, and how its values are printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mobilebert.reporting import verdicts

NOTHING = "–"  # the paper prints no value, or the model has no such part


@dataclass(frozen=True)
class Cell:
    """One cell, in the column's unit.

    spread: the standard deviation over `count` seeds; a latency has none, and counts rounds.
    """

    published: float | str | list | None
    measured: float | str | list | None
    verdict: verdicts.Verdict | None  # None if the cell measures nothing
    unit: str = ""
    spread: float | None = None
    count: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def published_text(self) -> str:
        """Return the published value as the paper prints it."""
        return show(self.published, self.unit, measured=False)

    @property
    def measured_text(self) -> str:
        """Return the value with spread and sample count, or the verdict if there is no value."""
        if self.verdict in ("not run", "diverged", "refused", "void", "edited"):
            return self.verdict
        text = show(self.measured, self.unit)
        if self.spread is not None:
            text += f" ± {show(self.spread, self.unit)}"
        return f"{text} (n={self.count})" if self.count else text


def show(value: Any, unit: str = "", measured: bool = True) -> str:
    """Return a value as a cell prints it; a published number keeps the paper's digits."""
    if value is None:
        return NOTHING
    if isinstance(value, list):
        return "/".join(str(int(item)) if isinstance(item, float) else str(item) for item in value)
    if isinstance(value, str):
        return value
    if unit == "%" or (measured and unit in ("M", "ms")) or (not measured and unit == "x"):
        return f"{value:.1f}"
    return f"{value:.2f}" if measured and unit in ("G", "x") else f"{value:g}"
