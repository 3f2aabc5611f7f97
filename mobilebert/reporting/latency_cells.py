"""Fill the latency columns of a table: milliseconds and speed-up, a pair for each engine."""

from __future__ import annotations

import math

from mobilebert import paper
from mobilebert.deployment.engines.table import INT8_FIXED_RANGES
from mobilebert.jobs.record import Record
from mobilebert.reporting import reading, verdicts
from mobilebert.reporting.cell import Cell

ENDING = ":p50_ms"


def engines(record: Record | None) -> list[str]:
    """Return the engines of a `latency` record, in the study's order."""
    if record is None:
        return []
    found = record.config.get("engines")
    if isinstance(found, list):
        return [str(engine) for engine in found]
    keys = [key for key in record.metrics if key.endswith(ENDING)]  # MLflow gives the list back as text
    return list(dict.fromkeys(key.removesuffix(ENDING).rpartition("/")[2] for key in keys))


def milliseconds(record: Record) -> dict[tuple[str, str], float]:
    """Return (model, engine) -> median time, without times that are no positive number."""
    found = {}
    for engine in engines(record):
        for key, value in record.metrics.items():
            if key.endswith(f"/{engine}{ENDING}") and reading.number(value) > 0:
                found[key.removesuffix(f"/{engine}{ENDING}"), engine] = reading.number(value)
    return found


def with_engines(table: paper.Table, record: Record | None) -> paper.Table:
    """Return the table with its latency columns once for each engine, if there are several."""
    known = engines(record)
    timed = [column for column in table.columns if column.source == "latency"]
    if len(known) < 2 or not timed:
        return table
    first = table.columns.index(timed[0])
    others = [column for column in table.columns if column not in timed]
    each = [
        column.model_copy(update={"key": f"{column.key} {engine}", "head": f"{column.head}, {engine}", "engine": engine})
        for engine in known
        for column in timed
    ]
    return table.model_copy(update={"columns": (*others[:first], *each, *others[first:])})


def published(table: paper.Table, row: paper.Row, column: paper.Column) -> float | None:
    """Return the printed latency in ms, or the ratio of two of them for a speed-up."""
    mine = row.published.get("latency_ms")
    if column.metric != "speed_up":
        return mine if isinstance(mine, int | float) else None
    base = next((one.published.get("latency_ms") for one in table.rows if one.model == column.over), None)
    return base / mine if isinstance(base, int | float) and isinstance(mine, int | float) else None


def cell(row: paper.Row, column: paper.Column, record: Record | None, printed: float | None) -> Cell:
    """Return the cell of the column's engine, or of the first one.

    The record's metric is `<model>/<engine>:p50_ms`; the samples of the rounds are
    `<model>/<engine>`. printed: the paper's value.
    """
    engine = column.engine or next(iter(engines(record)), None)
    names = [f"{model}/{engine}" for model in (row.model, column.over) if model]
    if record is None or (record.status == "ok" and any(f"{name}:p50_ms" not in record.metrics for name in names)):
        return Cell(printed, None, "not run", column.unit)
    threads = record.config.get("threads")
    setting = [f"{threads} thread{'' if threads == 1 else 's'}", f"length {record.config.get('length')}", "median of rounds"]
    labels = (*reading.labels(record), ", ".join([str(engine), *setting]), *_far_outputs(record, names))
    if record.status != "ok":
        labels += (f"{record.status}: {reading.reason(record)}",)
    times = [reading.number(record.metrics.get(f"{name}:p50_ms")) for name in names]
    measured = times[0] if column.metric != "speed_up" else times[1] / times[0] if times[0] else math.nan
    verdict = verdicts.cell(printed, measured, column.tolerance, labels, record.status, column.relative)
    count = len(record.samples.get(names[0], [])) or None
    return Cell(printed, measured, verdict, column.unit, count=count, labels=labels)


def _far_outputs(record: Record, names: list[str]) -> list[str]:
    """Return a label for each model whose output is too far from float32 for its speed to count.

    names: the cell's own model, then the one that it is compared with.
    """
    models, found = record.details.get("models"), []
    for name in dict.fromkeys(names):
        facts = models.get(name) if isinstance(models, dict) else None
        error = reading.number(facts.get("error")) if isinstance(facts, dict) else math.nan
        if error > INT8_FIXED_RANGES:
            whose = "output" if name == names[0] else f"output of {name.rpartition('/')[0]}"
            found.append(f"{whose} {error:.0%} away from float32")
    return found
