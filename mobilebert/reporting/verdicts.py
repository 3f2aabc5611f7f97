"""What a measured value says about a published one, and whether a study's expectations hold. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mobilebert.records import Record
from mobilebert.settings import Expectation

Verdict = Literal["match", "near", "differs", "not judged", "not run", "diverged", "refused", "void"]

NEAR = 1.5  # a value within this multiple of the tolerance is `near`
_ROUNDING = 1e-9  # 84.5 - 83.5 must not exceed a tolerance of 1.0 by a float's last digit


def cell(published, measured, tolerance: float | None, labels=(), status: str | None = "ok", relative=False) -> Verdict:
    """The verdict on one table cell, two-sided: a value that is too good differs like one that is too bad.

    published, measured: numbers in one unit, or text and lists, which either are equal or not; `tolerance` is in that
    unit, or a share of the published value where `relative`; None judges nothing. labels: why the value does not stand
    for the paper's setting (scaled, a subset); with one there is no judgement. status: of the record, None without one.
    """
    if status is None:
        return "not run"
    if status != "ok":
        return status
    if isinstance(measured, float) and not math.isfinite(measured):
        return "diverged"
    if published is None or tolerance is None or labels:
        return "not judged"
    if not (_is_number(published) and _is_number(measured)):
        return "match" if published == measured else "differs"
    limit = tolerance * abs(published) if relative else tolerance
    slack = _ROUNDING * max(1.0, abs(published))
    distance = abs(measured - published)
    if distance <= limit + slack:
        return "match"
    return "near" if distance <= NEAR * limit + slack else "differs"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Outcome:
    """Whether one expectation holds. `left` and `right` are the values compared, None where one is not to be had."""

    what: str
    outcome: Literal["pass", "fail"]
    left: float | None
    right: float | None
    comparison: str  # e.g. "finetune/mobilebert/sst2:accuracy above finetune/bag-of-embeddings/sst2:accuracy by 0.05"
    problem: str | None  # why it fails, in words
    reason: str  # why the study expects it


def expectations(expect: Iterable[Expectation], records: Mapping[str, Record]) -> list[Outcome]:
    """One outcome for every expectation. A record that is missing or did not end well, and a metric that is missing or
    null, fail it: what was not shown does not hold."""
    return [_expectation(item, records) for item in expect]


def _expectation(item: Expectation, records: Mapping[str, Record]) -> Outcome:
    side = "above" if item.above is not None else "below"
    bound = item.above if item.above is not None else item.below
    comparison = f"{item.metric} {side} {bound}" + (f" by {item.by:g}" if item.by else "")
    left, problem = _value(item.metric, records)
    right, other = _value(bound, records)
    problem = problem or other
    if problem is None:
        margin = left - right if side == "above" else right - left
        # Without a margin equal values are neither above nor below; with one the margin itself is enough.
        holds = margin >= item.by - _ROUNDING if item.by else margin > 0
        if not holds:
            problem = f"{left:.4f} is not {side} {right:.4f}" + (f" by {item.by:g}" if item.by else "")
    return Outcome(item.what, "fail" if problem else "pass", left, right, comparison, problem, item.reason)


def _value(source: str | float, records: Mapping[str, Record]) -> tuple[float | None, str | None]:
    """The number that `source` names, or why there is none."""
    if not isinstance(source, str):
        return float(source), None
    key, _, metric = source.partition(":")  # metrics may hold a colon, record ids never do
    record = records.get(key)
    if record is None:
        return None, f"missing: no current record of {key or source}"
    if record.status != "ok":
        return None, f"missing: {key} is {record.status}"
    if metric not in record.metrics:
        return None, f"missing: {key} has no metric {metric}"
    value = record.metrics[metric]
    if value is None or not math.isfinite(value):
        return None, f"missing: {source} is not a finite number"
    return value, None
