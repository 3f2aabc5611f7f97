"""Every current record, and every run that was killed, as MLflow runs."""

from __future__ import annotations

import sys

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting.tables import counts, fill
from mobilebert.reporting.tracking import ingest


def run(run: records.Run, study: Study) -> None:
    current = records.current(run.results, study.name, run.graph)
    edited = records.edited(run.results, study.name, run.graph)
    cells = counts(fill(study, current, edited))
    run.metrics |= ingest(run.results, study, run.graph, current, cells, edited, say)


def say(line: str) -> None:
    print(f"mobilebert: {line}", file=sys.stderr, flush=True)
