"""Print every int8 model of a study beside its float model, and say whether int8 keeps the score.

The paper's Table 6 says that 8-bit quantization costs next to nothing. Here that holds for a task
if at least one way keeps the whole 95 % interval of the paired change within one point, with nearly
all products in int8 and a file that is truly smaller, for a model that is large and has learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilebert.deployment.quantized_files import FIRST
from mobilebert.jobs.record import Record
from mobilebert.study.tasks import TASKS

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
            found += [_failed_row(record, way, reason) for way, reason in failed_ways(record).items()]
    return found


def failed_ways(record: Record) -> dict[str, str]:
    """Return the further ways of a record that made no int8 model, each with the reason."""
    found = {way: record.details.get(way) for way in record.config.get("also", ())}
    return {way: str(entry["reason"]) for way, entry in found.items() if isinstance(entry, dict) and "reason" in entry}


def _names(record: Record, way: str) -> dict[str, Any]:
    """Return the figures that a row has even if its way made no int8 model."""
    task = record.config["task"]
    metric = TASKS[task].metrics[0]
    score = record.samples[f"float_{metric}"][0]
    return {"model": record.name.partition("/")[0], "task": task, "way": way, "metric": metric, "float": score}


def _failed_row(record: Record, way: str, reason: str) -> dict[str, Any]:
    empty = dict.fromkeys(("int8", "change", "size", "int8_flops_share", "broken_layers", "isa", "engine", "method"))
    return _names(record, way) | empty | {"reason": reason, "against": [f"not quantized: {reason.removeprefix(f'{way}: ')}"]}


def _row(record: Record, way: str, tuned: Record | None) -> dict[str, Any]:
    made = record.quantizations.get(way) or record.quantization
    assert made is not None
    prefix, details = ("", record.details) if way == FIRST else (f"{way}:", record.details.get(way, {}))
    row = _names(record, way)
    ran = made.int8_flops_share if made.ran_int8_flops_share is None else made.ran_int8_flops_share
    row |= {
        "int8": record.metrics.get(f"{prefix}{row['metric']}"),
        "change": details.get("change"),
        "size": made.bytes_after / made.bytes_before,
        "int8_flops_share": ran,
        "broken_layers": list(made.broken_layers) if made.layer_errors or made.broken_layers else None,
        "isa": made.scored_on.get("isa", "unknown"),
        "engine": made.engine,
        "method": made.method,
    }
    if padded := details.get("padded_float"):  # the int8 file is compared with the float model on rows padded as its own
        row |= {"float": padded["scores"][row["metric"]], "padding": {"tokens": padded["tokens"], "change": padded["change"]}}
    return row | {"against": _against(row, record.metrics.get("majority"), tuned)}


def _against(row: dict[str, Any], majority: float | None, tuned: Record | None) -> list[str]:
    """Return why a row does not show that int8 keeps the score."""
    architecture = {} if tuned is None else tuned.config["architecture"]
    width = architecture.get("intra_bottleneck_size", architecture.get("hidden_size", 0))
    lead = None if majority is None else 100 * (row["float"] - majority)
    change, share = row["change"], row["int8_flops_share"] or 0.0
    found = []
    padding = row.get("padding")
    if change is None:
        found.append("no interval of the paired change")
    elif not _is_small(change):
        found.append(f"interval {change['low']:+.2f} to {change['high']:+.2f} is not within {POINTS:g} point")
    if padding and padding["change"] is None:
        found.append("no interval of what padding alone changes")
    elif padding and not _is_small(padding["change"]):
        low, high = padding["change"]["low"], padding["change"]["high"]
        found.append(f"padding to {padding['tokens']} tokens alone changes the float score by {low:+.2f} to {high:+.2f}")
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


def _is_small(change: Mapping[str, float]) -> bool:
    """Return whether the whole interval of a change counts as no change."""
    return -POINTS <= change["low"] <= change["high"] <= POINTS


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
        "-" if row["size"] is None else f"{row['size']:.2f}x",
        "-" if share is None else f"{share:.1%}",
        "-" if row["broken_layers"] is None else ", ".join(row["broken_layers"]) or "none",
        row["isa"] or "-",
    )


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each model and task: which ways keep the score, or that no interval of the
    task's change is known.

    If no way keeps the score, a line for each follows, with what it lacks. A way that made no int8
    model always has a line.
    """
    found = []
    for name in dict.fromkeys((row["model"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["task"]) == name]
        listed = [row for row in mine if "reason" in row]
        if not TASKS[name[1]].labels:
            found.append(f"{name[0]}/{name[1]}: not judged: no paired interval for this task")
        elif kept := [row["way"] for row in mine if not row["against"]]:
            found.append(f"{name[0]}/{name[1]}: int8 keeps the score within {POINTS:g} point in {', '.join(kept)}")
        else:
            found.append(f"{name[0]}/{name[1]}: not shown that int8 keeps the score")
            listed = mine
        found += [f"  {row['way']}: {'; '.join(row['against'])}" for row in listed]
    return found
