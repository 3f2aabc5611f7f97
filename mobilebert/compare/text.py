"""Print a comparison in a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobilebert.compare.comparison import Comparison, Report
from mobilebert.compare.differences import NONE, Difference
from mobilebert.compare.gate import HOLDS, GateRow
from mobilebert.compare.metrics import MetricRow, Values, changed_first
from mobilebert.util.text import cut

WIDTH = 120
VALUE = 30  # columns of a value of a configuration
NAME = 38  # columns of a metric's name, fewer beside long numbers
VERDICT = 8  # columns of the longest verdict
LEGEND = (
    "mean ± standard deviation; difference ± half of its 95 % interval; n of base/new; ↑ higher is better, ↓ lower.\n"
    "Five of a hundred unchanged metrics lie outside their interval by chance."
)


def text(report: Report) -> str:
    """Return the report as text, each line at most WIDTH columns."""
    parts = [_comparison(one) for one in report.comparisons]
    if report.gate is not None:
        parts.append(_gate(report.gate))
    return "\n\n".join(parts)


def number(value: float | None) -> str:
    """Return a number with four digits after the point; a count without; a large or a small one
    with six or four digits."""
    if value is None:
        return NONE
    if value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    if abs(value) < 0.001:
        return f"{value:.4g}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def shown(values: Values | None) -> str:
    """Return a side's values as mean and standard deviation."""
    if values is None:
        return NONE
    return number(values.mean) + ("" if values.spread is None else f" ± {number(values.spread)}")


def change(row: MetricRow) -> str:
    """Return the difference with its sign, and half of its interval."""
    if row.difference is None:
        return NONE
    sign = "+" if row.difference > 0 else ""
    return f"{sign}{number(row.difference)}" + ("" if row.margin is None else f" ± {number(row.margin)}")


def sizes(row: MetricRow) -> str:
    """Return the numbers of values of both sides."""
    return "/".join(str(len(values.values)) if values else "0" for values in (row.base, row.new))


def equal_line(one: Comparison) -> str:
    """Return the one line on equal runs."""
    counted = [row for row in one.metrics if not row.is_timing]
    times = len(one.metrics) - len(counted)
    jobs = len({row.job for row in counted})
    line = f"equal: {len(counted)} metrics of {jobs} records, to the digit; configuration, data, code and environment too"
    return line + (f"; {times} times are not compared" if times else "")


def _comparison(one: Comparison) -> str:
    head = [cut(f"base: {one.base}", WIDTH), cut(f"new:  {one.new}", WIDTH)]
    if one.is_equal:
        return equal_line(one)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in one.verdicts.items())
    lines = [*head, "", *_differences(one.differences), "", f"Metrics: {counts}", LEGEND, ""]
    return "\n".join([*lines, *_metrics(changed_first(one.metrics))])


def _differences(found: Sequence[Difference]) -> list[str]:
    if not found:
        return ["The same configuration, data, code and environment."]
    lines, kind = [], ""
    for item in found:
        if item.kind != kind:
            kind = item.kind
            lines.append(f"{kind.capitalize()}:")
        line = f"{item.key}: {cut(item.base, VALUE)} → {cut(item.new, VALUE)} ({item.where})"
        lines.append(f"  {cut(line, WIDTH - 2)}")
    return lines


def _metrics(rows: Sequence[MetricRow]) -> list[str]:
    numbers = [(shown(row.base), shown(row.new), change(row), sizes(row)) for row in rows]
    widths = [max((len(line[place]) for line in numbers), default=0) for place in range(4)]
    room = min(NAME, WIDTH - VERDICT - sum(width + 2 for width in widths) - 4)
    names = [cut(f"{row.metric} {row.arrow}", room) for row in rows]
    first = max(map(len, names), default=0)
    present = {row.job for row in rows if row.verdict != "missing"}
    lines, job = [], None
    for row, name, cells in zip(rows, names, numbers, strict=True):
        if row.job != job:
            job = row.job
            lines.append(cut(job if job in present else f"{job}: missing in the {'base' if row.base is None else 'new'}", WIDTH))
        if job not in present:
            continue
        padded = [name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]
        lines.append(f"  {'  '.join(padded)}  {row.verdict}")
    return lines


def _gate(rows: Sequence[GateRow]) -> str:
    return "\n".join([*gate_lines(rows), verdict(rows)])


def gate_lines(rows: Iterable[GateRow]) -> list[str]:
    """Return a line for each row of the gate; two if one is too long."""
    found = []
    for row in rows:
        values = f" {number(row.base)} → {number(row.new)}" if row.new is not None else ""
        line = f"{row.verdict}: {row.what}{values} ({row.reason})"
        if len(line) <= WIDTH:
            found.append(line)
        else:  # the reason ends with what to do, so it is not cut off
            found += [cut(f"{row.verdict}: {row.what}{values}", WIDTH), cut(f"  ({row.reason})", WIDTH)]
    return found


def verdict(rows: Sequence[GateRow]) -> str:
    """Return the last line: how many rows hold."""
    failed = [row for row in rows if row.verdict not in HOLDS]
    return f"gate: {len(rows) - len(failed)} hold, {len(failed)} do not"
