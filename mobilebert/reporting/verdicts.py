"""What a measured value says about a published one, and whether a study's expectations hold. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from mobilebert.jobs.record import Record
from mobilebert.study.sections import Expectation

Verdict = Literal["match", "near", "differs", "not judged", "not run", "failed", "diverged", "refused", "void", "edited"]

# Labels that a footnote names and that do not stop the judgement: a corpus that stands in for one no longer to be had, what a
# study changes of the recipe at the paper's scale (a precision, a rate), how the setting was chosen (without the paper's search
# a score that matches says more, and one that falls short may lack no more than that), over how many processes and micro-batches
# a batch was split (dropout draws other masks, as another seed does), and a record without a checksum.
NAMED = ("corpus:", "changed:", "search:", "split:", "record:")
NEAR = 1.5  # a value within this multiple of the tolerance is `near`
_ROUNDING = 1e-9  # 84.5 - 83.5 must not exceed a tolerance of 1.0 by a float's last digit


def cell(
    published: Any,
    measured: Any,
    tolerance: float | None,
    labels: Iterable[str] = (),
    status: str | None = "ok",
    relative: bool = False,
) -> Verdict:
    """The verdict on one table cell, two-sided: a value that is too good differs like one that is too bad.

    published, measured: numbers in one unit, or text and lists, which either are equal or not; `tolerance` is in that
    unit, or a share of the published value where `relative`; None judges nothing. labels: why the value does not stand
    for the paper's setting (scaled, a subset); with one there is no judgement, unless it begins as one of `NAMED`. status: of
    the record (`reading.status`: a failed one is never judged), None without one.
    """
    if status is None:
        return "not run"
    if status != "ok":
        return cast(Verdict, status)
    if isinstance(measured, float) and not math.isfinite(measured):
        return "diverged"
    if published is None or tolerance is None or any(not text.startswith(NAMED) for text in labels):
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
    """Whether one expectation holds. `left` and `right` are the values compared, None where one is not to be had.

    void: what the comparison stands on does not hold. shown: a comparison that the study does not judge.
    """

    what: str
    outcome: Literal["pass", "fail", "void", "shown"]
    left: float | None
    right: float | None
    comparison: str  # e.g. "finetune/mobilebert/sst2:accuracy above finetune/bag-of-embeddings/sst2:accuracy by 0.05"
    problem: str | None  # why it does not pass, in words
    reason: str  # why the study expects it


def expectations(expect: Iterable[Expectation], records: Mapping[str, Record], edited: Collection[str] = ()) -> list[Outcome]:
    """One outcome for every expectation. A record that is missing, edited (ids in `edited`) or did not end well, and a metric
    that is missing or null, fail it: what was not shown does not hold. Neither does what stands on another expectation that
    does not."""
    found: list[Outcome] = []
    for item in expect:
        condition = next((one for one in found if one.what == item.void_unless), None)
        found.append(_expectation(item, records, edited, condition))
    return found


def _expectation(item: Expectation, records: Mapping[str, Record], edited: Collection[str], condition: Outcome | None) -> Outcome:
    side = "above" if item.above is not None else "below"
    bound = item.above if item.above is not None else item.below
    margin = f" by {item.by:g}" if item.by else ""
    comparison = f"{item.metric} {side} {bound}{margin}"
    left, problem = _values(item.metric, records, edited)
    assert bound is not None
    right, other = _values(bound, records, edited)
    problem = problem or other
    mine, theirs = (sum(values) / len(values) if values else None for values in (left, right))
    outcome = "fail" if problem else "pass"
    if problem is None:
        assert mine is not None
        assert theirs is not None
        if len(left) > 1 or len(right) > 1:
            comparison = f"{_spread(left)} {side} {_spread(right)}{margin}: {comparison}"
        lead = mine - theirs if side == "above" else theirs - mine
        # Without a margin equal values are neither above nor below; with one the margin itself is enough.
        holds = lead >= item.by - _ROUNDING if item.by else lead > 0
        if not holds:
            outcome, problem = "fail", f"{_spread(left)} is not {side} {_spread(right)}{margin}"
        if not item.judged:
            outcome = "shown"
    if condition is not None and condition.outcome != "pass":
        outcome, problem = "void", f"{condition.outcome}: {condition.what}"
    return Outcome(item.what, outcome, mine, theirs, comparison, problem, item.reason)


def _spread(values: list[float]) -> str:
    """A value; or a mean, and in brackets the values that it is of."""
    mean = f"{sum(values) / len(values):.4f}"
    return mean if len(values) == 1 else f"{mean} [{', '.join(f'{value:.4f}' for value in values)}]"


def _values(source: str | float, records: Mapping[str, Record], edited: Collection[str]) -> tuple[list[float], str | None]:
    """The numbers that `source` names, or why there is one missing."""
    if not isinstance(source, str):
        return [float(source)], None
    metric, values = source.partition(":")[2], []  # metrics may hold a colon, record ids never do
    for key in Expectation.records(source):
        record = records.get(key)
        if key in edited:
            return [], f"edited: the record of {key} was changed after it was written"
        if record is None:
            return [], f"missing: no current record of {key}"
        if record.status != "ok":
            return [], f"missing: {key} is {record.status}"
        if metric not in record.metrics:
            return [], f"missing: {key} has no metric {metric}"
        value = record.metrics[metric]
        if value is None or not math.isfinite(value):
            return [], f"missing: {metric} of {key} is not a finite number"
        values.append(value)
    return values, None
