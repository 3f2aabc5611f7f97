"""Write every current record and every killed job to MLflow, as MLflow runs."""

from __future__ import annotations

import sys

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import current_records, edited_records
from mobilebert.jobs.record import Record
from mobilebert.reporting.tracking import ingest
from mobilebert.study.schema import Study


def main(context: JobContext, study: Study) -> None:
    """Update the MLflow store and count what changed."""
    current = current_records(context.results, study.name, context.graph)
    edited = edited_records(context.results, study.name, context.graph)
    context.metrics |= ingest(context.results, study, context.graph, current, lambda: cells(study, current, edited), edited, say)


def cells(study: Study, found: dict[str, Record], edited: list[str]) -> dict[str, int]:
    """Return the counts of the tables' cells."""
    from mobilebert.reporting.tables import counts, fill  # imports torch: a broken store is reported before

    return counts(fill(study, found, edited))


def say(line: str) -> None:
    """Print a line to the standard error, after the program's name."""
    print(f"mobilebert: {line}", file=sys.stderr, flush=True)
