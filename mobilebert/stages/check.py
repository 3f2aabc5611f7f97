"""The study's expectations against its records: the command exits 1 when one fails."""

from __future__ import annotations

from dataclasses import asdict

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting.verdicts import expectations


def run(run: records.Run, study: Study) -> None:
    outcomes = expectations(study.expect, records.current(run.results, study.name, run.graph))
    failed = sum(item.outcome in ("fail", "void") for item in outcomes)
    run.metrics |= {"passed": sum(item.outcome == "pass" for item in outcomes), "failed": failed}
    run.details["verdicts"] = [asdict(item) for item in outcomes]
    run.details["lines"] = [f"{item.outcome}: {item.what} ({item.problem or item.comparison})" for item in outcomes]
