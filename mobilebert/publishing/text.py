"""Word values and tables of a card in Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from mobilebert.reporting import reading
from mobilebert.util.text import one_line


def digits(number: float) -> str:
    """Return a metric's value; a dash for none."""
    return f"{number:.4f}" if reading.is_number(number) else "–"


def code(text: object) -> str:
    """Return a text as code in a cell of a table."""
    return f"`{one_line(str(text)).translate({ord('|'): '/', ord('`'): ' '})}`" if text else "–"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]
