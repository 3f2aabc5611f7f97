"""Every current record, and every run that was killed, as MLflow runs."""

from __future__ import annotations

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting.tracking import ingest


def run(run: records.Run, study: Study) -> None:
    run.metrics |= ingest(run.results, study, run.graph, records.current(run.results, study.name, run.graph))
