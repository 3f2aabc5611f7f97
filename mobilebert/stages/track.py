"""Write every current record and every killed job to MLflow, as MLflow runs."""

from __future__ import annotations

import functools
import logging

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import current_records, edited_records
from mobilebert.jobs.record import Record
from mobilebert.reporting.tracking import ingest
from mobilebert.study.schema import Study

logger = logging.getLogger(__name__)


def main(context: JobContext, study: Study) -> None:
    """Update the MLflow store and count what changed."""
    current = current_records(context.results, study.name, context.graph)
    edited = edited_records(context.results, study.name, context.graph)
    count = functools.partial(cells, study, current, edited)
    context.metrics |= ingest(context.results, study, context.graph, current, count, edited, logger.warning)


def cells(study: Study, found: dict[str, Record], edited: list[str]) -> dict[str, int]:
    """Return the counts of the tables' cells."""
    from mobilebert.reporting.tables import counts, fill  # imports torch: a broken store is reported before

    return counts(fill(study, found, edited))
