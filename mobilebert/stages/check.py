"""Compare the study's expectations with its records.

The command exits with 1 if an expectation fails or is void, or if a record was edited by hand.
"""

from __future__ import annotations

from dataclasses import asdict

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import current_records, damaged_records, edited_records
from mobilebert.reporting import reading
from mobilebert.reporting.verdicts import expectations
from mobilebert.study.schema import Study
from mobilebert.util.text import one_line


def main(context: JobContext, study: Study) -> None:
    """Write the verdicts and counts into the record, and the lines that the command prints."""
    found = current_records(context.results, study.name, context.graph)
    edited = edited_records(context.results, study.name, context.graph)
    outcomes = expectations(study.expect, found, edited)
    passed = sum(item.outcome == "pass" for item in outcomes)
    failed = sum(item.outcome in ("fail", "void") for item in outcomes) + len(edited)
    scores = [record for record in found.values() if reading.status(record) == "failed"]
    context.metrics |= {"passed": passed, "failed": failed, "failed_scores": len(scores)}
    context.details["verdicts"] = [asdict(item) for item in outcomes]
    lines = [f"{item.outcome}: {item.what} ({item.problem or item.comparison})" for item in outcomes]
    lines += [f"edited: {key} (changed after it was written; delete its result.json to make it again)" for key in edited]
    damaged = damaged_records(context.results, study.name, context.graph)
    lines += [f"damaged: {path} ({problem}; delete it to make it again)" for path, problem in damaged.items()]
    lines += [f"not learnt: {record.id} ({reading.reason(record)})" for record in scores]
    learnt = f"{len(scores)} of {sum(map(reading.is_score, found.values()))} scores are of models that have not learnt"
    context.details["lines"] = [*map(one_line, lines), f"{passed} passed, {failed} failed; {learnt}"]
