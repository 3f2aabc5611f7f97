"""Judge measured values against published ones, and a study's expectations, by pure functions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from mobilebert.jobs.record import Record
from mobilebert.study.sections import Expectation

Verdict = Literal["match", "near", "differs", "not judged", "not run", "failed", "diverged", "refused", "void", "edited"]

MEANINGS: dict[Verdict, str] = {
    "match": "the measured value lies within the column's tolerance of the published one",
    "near": "it lies within one and a half times the tolerance",
    "differs": "it lies further away, above or below",
    "not judged": "the setting is not the paper's, or the paper prints no comparable value; the labels say which",
    "not run": "there is no record yet",
    "failed": "at least half of the seeds did not learn",
    "diverged": "a loss was not finite",
    "refused": "an input is missing",
    "void": "the timing was disturbed",
    "edited": "the record was changed after it was written",
}

# A footnote names labels that begin so, and the cell is judged nevertheless:
# corpus: another corpus replaces one that is no longer available.
# changed: the study changes the recipe at the paper's scale (a precision, a rate).
# search: how the setting was chosen. Without the paper's search a match says more, and a score
#     that falls short may lack only the search.
# split: processes and micro-batches of a batch; dropout draws other masks, as with another seed.
# record: the record has no checksum.
NAMED = ("corpus:", "changed:", "search:", "split:", "record:")
NEAR = 1.5  # a value within this multiple of the tolerance is `near`
_ROUNDING = 1e-9  # so that 84.5 - 83.5 does not exceed a tolerance of 1.0 by a float's last digit


def cell(
    published: Any,
    measured: Any,
    tolerance: float | None,
    labels: Iterable[str] = (),
    status: str | None = "ok",
    relative: bool = False,
) -> Verdict:
    """Return the verdict on one table cell; a value that is too good differs like one too bad.

    published, measured: numbers in one unit, or texts and lists, which must be equal.
    tolerance: in that unit, or a fraction of the published value if `relative`; None: not judged.
    labels: why the setting is not the paper's (scaled, a subset); a label that does not begin as
        one of `NAMED` prevents a judgement.
    status: the record's (`reading.status`), None without a record. A failed one is never judged.
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
    """The outcome of one expectation. `left` and `right`: the compared values, None if missing.

    void: its condition, another expectation, does not hold. shown: the study does not judge it.
    """

    what: str
    outcome: Literal["pass", "fail", "void", "shown"]
    left: float | None
    right: float | None
    comparison: str  # e.g. "finetune/mobilebert/sst2:accuracy above finetune/bag-of-embeddings/sst2:accuracy by 0.05"
    problem: str | None  # why it does not pass
    reason: str  # why the study expects it


def expectations(expect: Iterable[Expectation], records: Mapping[str, Record], edited: Collection[str] = ()) -> list[Outcome]:
    """Return the outcome of every expectation.

    One fails if a record is missing, edited (ids in `edited`) or not ok, or if a metric is missing
    or null. It is void if its condition, an earlier expectation, does not pass.
    """
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
        # Equal values fail if there is no margin; with a margin a lead of exactly that is enough.
        holds = lead >= item.by - _ROUNDING if item.by else lead > 0
        if not holds:
            outcome, problem = "fail", f"{_spread(left)} is not {side} {_spread(right)}{margin}"
        if not item.judged:
            outcome = "shown"
    if condition is not None and condition.outcome != "pass":
        outcome, problem = "void", f"{condition.outcome}: {condition.what}"
    return Outcome(item.what, outcome, mine, theirs, comparison, problem, item.reason)


def _spread(values: list[float]) -> str:
    """Return one value, or a mean and its values in brackets."""
    mean = f"{sum(values) / len(values):.4f}"
    return mean if len(values) == 1 else f"{mean} [{', '.join(f'{value:.4f}' for value in values)}]"


def _values(source: str | float, records: Mapping[str, Record], edited: Collection[str]) -> tuple[list[float], str | None]:
    """Return the numbers that `source` names and None, or no numbers and why one is missing."""
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
