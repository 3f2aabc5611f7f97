"""Pool the cells of one row over its pre-training seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mobilebert import paper
from mobilebert.jobs.record import Record
from mobilebert.reporting import reading, verdicts
from mobilebert.reporting.cell import Cell


def records_of(row: str | None, key: str, records: Mapping[str, Record], edited: Collection[str]) -> list[Record | None]:
    """Return the record of a job, and those of the same stage and task for the row's other seeds.

    A record names its row. key: the id of the job of seed 0, such as finetune/mobilebert/sst2.
    """
    stage, _, name = key.partition("/")
    task = name.rpartition("/")[2]
    others = {
        other.pretraining_seed or 0: other
        for place, other in records.items()
        if place != key and place not in edited and (other.stage, other.row) == (stage, row) and other.name.endswith(f"/{task}")
    }
    return [records.get(key), *(others[seed] for seed in sorted(others))]


def pooled(column: paper.Column, cells: Sequence[Cell]) -> Cell:
    """Return the mean of the cells of several pre-training seeds, with its spread over them.

    A cell without a value, or whose model has not learnt, counts as failed; at least half of them
    make the mean failed. One cell, or a first one that was not run, is returned as it is.
    """
    first = cells[0]
    values = [float(cell.measured) for cell in cells if isinstance(cell.measured, int | float)]
    if len(cells) == 1 or first.verdict == "not run" or not values:
        return first
    mean, bad = math.fsum(values) / len(values), sum(cell.verdict in ("failed", "diverged", "refused", "void") for cell in cells)
    labels = tuple(dict.fromkeys(label for cell in cells for label in cell.labels))
    status = "failed" if bad >= len(cells) / 2 else "ok"
    verdict = verdicts.cell(first.published, mean, column.tolerance, labels, status, column.relative)
    labels += (f"mean and standard deviation over {len(values)} pre-training seeds",)
    labels += (f"{bad} of {len(cells)} pre-training seeds failed or diverged",) if bad else ()
    return replace(first, measured=mean, verdict=verdict, spread=reading.spread(values), count=len(values), labels=labels)
