"""Say why a study's numbers are not the paper's: published, measured, and what deviates."""

from __future__ import annotations

import contextlib
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mobilebert import paper
from mobilebert.jobs.folder import RecordFolder
from mobilebert.reporting.cell import Cell
from mobilebert.reporting.tables import FilledRow, FilledTable, fill
from mobilebert.study.schema import Study
from mobilebert.util.text import one_line

WIDTH = 120
# Kinds of deviations, the largest first. Within a kind the factor counts.
ORDER = ("data", "tokens", "scale", "corpus", "rows", "split", "recipe", "search", "seeds", "other")
_KINDS = {
    "synthetic:": "data",
    "scaled: a corpus": "corpus",
    "scaled: widths": "scale",
    "scaled:": "tokens",
    "budget:": "tokens",
    "corpus:": "corpus",
    "subset": "rows",
    "changed:": "recipe",
    "search:": "search",
    "split:": "recipe",
}
_SHARE = re.compile(r"sees ([\d.e+-]+) of the paper's tokens")
_DIVISORS = re.compile(r"widths / (\d+), layers / (\d+)")


@dataclass(frozen=True)
class Deviation:
    """One known deviation. factor: how many times less than the paper has; 1 if not a number."""

    kind: str
    text: str
    factor: float = 1.0


@dataclass(frozen=True)
class PaperRow:
    """A row of a table with its measured cells and its deviations."""

    table: int
    label: str
    model: str
    cells: tuple[tuple[paper.Column, Cell], ...]
    deviations: tuple[Deviation, ...]


def deviation(label: str) -> Deviation:
    """Return a record's label as a deviation."""
    kind = next((kind for start, kind in _KINDS.items() if label.startswith(start)), "other")
    factor = 1.0
    with contextlib.suppress(ValueError, ZeroDivisionError):  # a label that no stage writes
        if share := _SHARE.search(label):
            factor = 1 / float(share[1])
        elif divisors := _DIVISORS.search(label):
            factor = math.prod(map(float, divisors.groups()))
    return Deviation(kind, label, factor)


def paper_rows(study: Study, found: RecordFolder) -> list[PaperRow]:
    """Return each row of the tables that the records fill, with its deviations, largest first."""
    return [
        row for table in fill(study, found.records, found.edited) for filled in table.rows if (row := _row(study, table, filled))
    ]


def _row(study: Study, table: FilledTable, filled: FilledRow) -> PaperRow | None:
    pairs = zip(table.table.columns, filled.cells, strict=True)
    cells = [(column, cell) for column, cell in pairs if column.source in ("finetune", "glue", "latency") and cell.verdict]
    shown = [(column, cell) for column, cell in cells if cell.verdict != "not run" and not _is_nan(cell.measured)]
    if not shown or filled.row.model is None:
        return None
    deviations = [deviation(label) for label in dict.fromkeys(label for _, cell in shown for label in cell.labels)]
    if any(column.published_split.startswith("test") for column, _ in shown):
        deviations.append(Deviation("split", "split: published on the test server, measured on the development set"))
    if study.recipe == "released":
        deviations.append(Deviation("recipe", "recipe: the released code's numbers"))
    counts = {cell.count for column, cell in shown if column.source == "finetune" and cell.count}
    if counts:
        seeds = "/".join(map(str, sorted(counts)))
        deviations.append(Deviation("seeds", f"seeds: the median of {seeds} fine-tuning seed{'s' * (seeds != '1')}"))
    ordered = sorted(deviations, key=lambda item: (ORDER.index(item.kind), -item.factor))
    return PaperRow(table.number, filled.label, filled.row.model, tuple(shown), tuple(ordered))


def text(rows: Sequence[PaperRow]) -> str:
    """Return the rows as text of at most WIDTH columns."""
    return "\n\n".join("\n".join(_lines(row)) for row in rows) or "no cell of the paper's tables was measured"


def _lines(row: PaperRow) -> Iterable[str]:
    yield f"Table {row.table}, {row.label} ({row.model})"
    widest = max(len(column.head) for column, _ in row.cells)
    for column, cell in row.cells:
        head = f"  {column.head.ljust(widest)}  published {cell.published_text.rjust(6)} {column.unit}"
        distance = "" if (away := _distance(cell)) is None else f", {away:+.1f}"
        verdict = "" if cell.verdict == cell.measured_text else f", {cell.verdict}"
        yield f"{head}  measured {cell.measured_text}{distance}{verdict}"
    yield "  known deviations, the largest first:"
    for item in row.deviations:
        yield textwrap.fill(one_line(item.text), WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _distance(cell: Cell) -> float | None:
    """Return the measured less the published value; None if one is missing or does not count."""
    if cell.verdict in ("void", "diverged", "refused", "edited"):
        return None
    if isinstance(cell.published, int | float) and isinstance(cell.measured, int | float):
        return cell.measured - cell.published
    return None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def as_json(rows: Sequence[PaperRow]) -> dict:
    """Return the rows as JSON can hold them."""
    found = []
    for row in rows:
        cells = [
            {"column": column.head, "published": cell.published, "measured": cell.measured, "spread": cell.spread}
            | {"n": cell.count, "unit": column.unit, "verdict": cell.verdict}
            for column, cell in row.cells
        ]
        deviations = [{"kind": item.kind, "text": item.text} for item in row.deviations]
        found.append({"table": row.table, "row": row.label, "model": row.model, "cells": cells, "deviations": deviations})
    return {"rows": found}
