"""Every current record, and every run that was killed, as MLflow runs."""

from __future__ import annotations

import sys

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import current_records, edited_records
from mobilebert.jobs.record import Record
from mobilebert.reporting.tracking import ingest
from mobilebert.study.schema import Study


def main(context: JobContext, study: Study) -> None:
    current = current_records(context.results, study.name, context.graph)
    edited = edited_records(context.results, study.name, context.graph)
    context.metrics |= ingest(context.results, study, context.graph, current, lambda: cells(study, current, edited), edited, say)


def cells(study: Study, found: dict[str, Record], edited: list[str]) -> dict[str, int]:
    from mobilebert.reporting.tables import counts, fill  # imports torch: a store that is out of order is told before

    return counts(fill(study, found, edited))


def say(line: str) -> None:
    print(f"mobilebert: {line}", file=sys.stderr, flush=True)
