"""Print every int8 model of a study beside its float model, and say whether int8 keeps the score.

The paper's Table 6 says that 8-bit quantization costs next to nothing. Here that holds for a task
if at least one way keeps the whole 95 % interval of the paired change within one point, with nearly
all products in int8 and a file that is truly smaller, for a model that is large and has learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilebert.jobs.record import Record
from mobilebert.study.tasks import TASKS

FIRST = "onnxruntime-int8"
POINTS = 1.0  # largest change of the score that counts as none; the whole interval must lie within
SHARE = 0.9  # least share of the matrix products' FLOPs in int8
SIZE = 0.35  # largest int8 file, as a share of the float32 file
WIDTH = 64  # least width of a block: smaller products say little of a real model's
LEAD = 10.0  # points by which the float model must beat the commonest class


def rows_of(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Return a row for each int8 model in the records: its figures, and `against`.

    `against` lists why the row does not show that int8 keeps the score; [] if it does.
    """
    found = []
    for record in records.values():
        if record.stage == "quantize" and record.status == "ok":
            ways = record.quantizations or ({FIRST: record.quantization} if record.quantization else {})
            found += [_row(record, way, records.get(f"finetune/{record.name}")) for way in ways]
    return found


def _row(record: Record, way: str, tuned: Record | None) -> dict[str, Any]:
    made = record.quantizations.get(way) or record.quantization
    assert made is not None
    prefix, details = ("", record.details) if way == FIRST else (f"{way}:", record.details.get(way, {}))
    task = record.config["task"]
    metric = TASKS[task].metrics[0]
    change = details.get("change")
    ran = made.int8_flops_share if made.ran_int8_flops_share is None else made.ran_int8_flops_share
    row: dict[str, Any] = {
        "model": record.name.partition("/")[0],
        "task": task,
        "way": way,
        "metric": metric,
        "float": record.samples[f"float_{metric}"][0],
        "int8": record.metrics.get(f"{prefix}{metric}"),
        "change": change,
        "size": made.bytes_after / made.bytes_before,
        "int8_flops_share": ran,
        "broken_layers": list(made.broken_layers),
        "isa": made.scored_on.get("isa", "unknown"),
        "engine": made.engine,
        "method": made.method,
    }
    return row | {"against": _against(row, record.metrics.get("majority"), tuned)}


def _against(row: dict[str, Any], majority: float | None, tuned: Record | None) -> list[str]:
    """Return why a row does not show that int8 keeps the score."""
    architecture = {} if tuned is None else tuned.config["architecture"]
    width = architecture.get("intra_bottleneck_size", architecture.get("hidden_size", 0))
    lead = None if majority is None else 100 * (row["float"] - majority)
    change, share = row["change"], row["int8_flops_share"] or 0.0
    found = []
    if change is None:
        found.append("no interval of the paired change")
    elif not -POINTS <= change["low"] <= change["high"] <= POINTS:
        found.append(f"interval {change['low']:+.2f} to {change['high']:+.2f} is not within {POINTS:g} point")
    if share < SHARE:
        found.append(f"{share:.0%} of the FLOPs in int8, {SHARE:.0%} are needed")
    if row["size"] > SIZE:
        found.append(f"file {row['size']:.3f}x, {SIZE}x is needed")
    if width < WIDTH:
        found.append(f"blocks {width} wide, {WIDTH} are needed")
    if lead is None or lead < LEAD:
        beats = "of no classes" if lead is None else f"{lead:+.1f} points from the commonest class"
        found.append(f"float score {beats}, {LEAD:+g} are needed")
    return found


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table, then one line for each task."""
    head = ("model/task", "way", "float", "int8", "change [95 %]", "file", "int8 FLOPs", "broken layers", "scored on")
    table = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table]
    return "\n".join([*lines, "", *verdicts(rows)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    change, share = row["change"], row["int8_flops_share"]
    return (
        f"{row['model']}/{row['task']}",
        row["way"],
        f"{100 * row['float']:.2f}",
        "-" if row["int8"] is None else f"{100 * row['int8']:.2f}",
        "-" if change is None else f"{change['points']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]",
        f"{row['size']:.2f}x",
        "-" if share is None else f"{share:.1%}",
        ", ".join(row["broken_layers"]) or "none",
        row["isa"],
    )


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each model and task: which ways keep the score. If none does, a line for
    each way follows, with what it lacks."""
    found = []
    for name in dict.fromkeys((row["model"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["task"]) == name]
        if kept := [row["way"] for row in mine if not row["against"]]:
            found.append(f"{name[0]}/{name[1]}: int8 keeps the score within {POINTS:g} point in {', '.join(kept)}")
        else:
            found.append(f"{name[0]}/{name[1]}: not shown that int8 keeps the score")
            found += [f"  {row['way']}: {'; '.join(row['against'])}" for row in mine]
    return found
