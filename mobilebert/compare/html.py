"""Write a comparison as one HTML file without scripts, and with nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from mobilebert.compare.comparison import Comparison, Report
from mobilebert.compare.metrics import changed_first
from mobilebert.compare.text import change, equal_line, number, shown, sizes, verdict

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { border: 1px solid #8888; padding: .25rem .5rem; text-align: left; overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; }
.worse, .missing, .suspicious, .edited, .not-comparable, .void, .diverged { font-weight: 600; }
"""


def page(report: Report) -> str:
    """Return the report as HTML; every text of a record or a study is escaped."""
    parts = [] if report.gate is None else [_gate(report)]
    parts += [_comparison(one) for one in report.comparisons]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
    head += "<title>Comparison</title>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n<main>{body}</main>\n</body></html>\n'


def _gate(report: Report) -> str:
    rows = report.gate or ()
    lines = [(row.what, number(row.base), number(row.new), row.verdict, row.reason) for row in rows]
    heads = ("metric or record", "baseline", "new", "verdict", "reason")
    return f"<h1>Gate</h1><p>{escape(verdict(rows))}</p>" + _table("Gated metrics", heads, lines, (1, 2), 3)


def _comparison(one: Comparison) -> str:
    title = f"<h1>{escape(one.new)} beside {escape(one.base)}</h1>"
    if one.is_equal:
        return f"{title}<p>{escape(equal_line(one))}</p>"
    changed = [(item.kind, item.key, item.base, item.new, item.where) for item in one.differences]
    metrics = [
        (row.job, f"{row.metric} {row.arrow}", shown(row.base), shown(row.new), change(row), sizes(row), row.verdict)
        for row in changed_first(one.metrics)
    ]
    return (
        title
        + _table("What differs", ("kind", "key", "base", "new", "where"), changed)
        + _table("Metrics", ("record", "metric", "base", "new", "difference", "n", "verdict"), metrics, (2, 3, 4, 5), 6)
    )


def _table(
    caption: str, heads: Iterable[str], rows: Iterable[tuple[str, ...]], numbers: tuple[int, ...] = (), verdicts: int = -1
) -> str:
    """Return a table. numbers: columns that align right. verdicts: the column that has a class."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = []
    for row in rows:
        cells = []
        for place, text in enumerate(row):
            kind = "number" if place in numbers else text.replace(" ", "-") if place == verdicts else ""
            cells.append(f"<td{f' class={chr(34)}{escape(kind)}{chr(34)}' if kind else ''}>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines) or "<tr><td>nothing</td></tr>"
    inner = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody>"
    scrolled = f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">'  # by keyboard too
    return f"{scrolled}<table>{inner}</table></div>"
