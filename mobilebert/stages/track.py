"""Every current record, and every run that was killed, as MLflow runs."""

from __future__ import annotations

import sys

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting.tracking import ingest


def run(run: records.Run, study: Study) -> None:
    current = records.current(run.results, study.name, run.graph)
    edited = records.edited(run.results, study.name, run.graph)
    run.metrics |= ingest(run.results, study, run.graph, current, lambda: cells(study, current, edited), edited, say)


def cells(study: Study, found: dict[str, records.Record], edited: list[str]) -> dict[str, int]:
    from mobilebert.reporting.tables import counts, fill  # imports torch: a store that is out of order is told before

    return counts(fill(study, found, edited))


def say(line: str) -> None:
    print(f"mobilebert: {line}", file=sys.stderr, flush=True)
