"""The study's expectations against its records: the command exits 1 when one fails, or when a record was edited by hand."""

from __future__ import annotations

from dataclasses import asdict

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting import reading
from mobilebert.reporting.text import one_line
from mobilebert.reporting.verdicts import expectations


def run(run: records.Run, study: Study) -> None:
    found = records.current(run.results, study.name, run.graph)
    edited = records.edited(run.results, study.name, run.graph)
    outcomes = expectations(study.expect, found, edited)
    passed = sum(item.outcome == "pass" for item in outcomes)
    failed = sum(item.outcome in ("fail", "void") for item in outcomes) + len(edited)
    scores = [record for record in found.values() if reading.status(record) == "failed"]
    run.metrics |= {"passed": passed, "failed": failed, "failed_scores": len(scores)}
    run.details["verdicts"] = [asdict(item) for item in outcomes]
    lines = [f"{item.outcome}: {item.what} ({item.problem or item.comparison})" for item in outcomes]
    lines += [f"edited: {key} (changed after it was written; delete its result.json to make it again)" for key in edited]
    damaged = records.damaged(run.results, study.name, run.graph)
    lines += [f"damaged: {path} ({problem}; delete it to make it again)" for path, problem in damaged.items()]
    lines += [f"not learnt: {record.id} ({reading.reason(record)})" for record in scores]
    learnt = f"{len(scores)} of {sum(map(reading.is_score, found.values()))} scores are of models that have not learnt"
    run.details["lines"] = [*map(one_line, lines), f"{passed} passed, {failed} failed; {learnt}"]
