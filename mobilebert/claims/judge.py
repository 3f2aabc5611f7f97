"""Judge all claims at once, by one pure function from measured values to verdicts.

Primary claims share Holm's correction at ERROR. Each is tested on both sides: whether it holds, and
whether it is contradicted. So a study errs on any of them with a probability of at most ERROR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mobilebert.claims.effects import Effect
from mobilebert.claims.evidence import ROUNDING, evidence
from mobilebert.claims.measured import Measured
from mobilebert.claims.student_t import quantile, tail
from mobilebert.paper.claims import Claim

ERROR = 0.05
POWER = 0.8  # `smallest` is told in this share of studies

Verdict = Literal["reproduced", "contradicted", "inconclusive", "other device", "not run", "void", "exploratory"]


@dataclass(frozen=True)
class Finding:
    """The verdict on one claim. `exploratory` is no verdict: an interval alone.

    effects: one a link, in the claim's unit; a speed is a logarithm. intervals: one an effect, at
    `confidence`. smallest: how far from the margin a true effect must lie to be told in POWER of
    such studies; None without a test. value: of a size. reason: why there is no other verdict.
    """

    claim: Claim
    verdict: Verdict
    effects: tuple[Effect, ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()
    confidence: float = 1 - ERROR
    smallest: float | None = None
    value: float | None = None
    reason: str = ""
    details: tuple[Effect, ...] = ()


def judge(claims: Sequence[Claim], measured: Measured) -> list[Finding]:
    """Return the finding on every claim, in their order."""
    found = [_size(claim, measured) if claim.kind == "size" else _uncorrected(claim, measured) for claim in claims]
    tested = {
        number: _chances(finding)
        for number, finding in enumerate(found)
        if finding.claim.standing == "primary" and finding.verdict == "exploratory"
    }
    ranked = sorted(tested, key=lambda number: min(tested[number]))
    rejects, error = True, ERROR
    for rank, number in enumerate(ranked):
        holds, fails = tested[number]
        if rejects:
            error = ERROR / (len(ranked) - rank)
            rejects = 2 * min(holds, fails) <= error
        verdict: Verdict = "inconclusive"
        if rejects:
            verdict = "reproduced" if holds <= fails else "contradicted"
        found[number] = replace(found[number], verdict=verdict, confidence=1 - error)
    return [_with_intervals(finding) for finding in found]


def thresholds(claim: Claim) -> tuple[float, float]:
    """Return above which effect a claim holds, and below which it is contradicted."""
    if claim.kind in ("pretraining", "contrast"):
        return claim.margin, -claim.margin
    if claim.kind in ("order", "no loss"):
        return -claim.margin, -claim.margin
    assert claim.printed is not None
    printed = float(claim.printed)
    limit = math.log(printed * (1 - claim.margin)) if claim.kind == "speed" else printed - claim.margin
    return limit, limit


def _uncorrected(claim: Claim, measured: Measured) -> Finding:
    """Return the finding without a verdict; `exploratory` if the claim can be tested."""
    given = evidence(claim, measured)
    return Finding(claim, given.problem or "exploratory", given.effects, reason=given.reason, details=given.details)


def _with_intervals(finding: Finding) -> Finding:
    """Return the finding with its intervals, and with what the test could have told."""
    error = 1 - finding.confidence
    intervals, smallest = [], []
    for effect in finding.effects:
        if not math.isfinite(effect.error):
            intervals.append((-math.inf, math.inf))
            continue
        reach = quantile(1 - error / 2, effect.df)
        intervals.append((effect.value - reach * effect.error, effect.value + reach * effect.error))
        smallest.append((reach + quantile(POWER, effect.df)) * effect.error)
    told = max(smallest) if len(smallest) == len(finding.effects) > 0 else None
    return replace(finding, intervals=tuple(intervals), smallest=told)


def _chances(finding: Finding) -> tuple[float, float]:
    """Return the one-sided p-values: that the claim does not hold, that it is not contradicted.

    A claim holds if every link does, so its p-value is the largest. It is contradicted if one link
    is, so that p-value is the smallest times the number of links.
    """
    upper, lower = thresholds(finding.claim)
    holds = max(_tail(effect.value - upper, effect) for effect in finding.effects)
    fails = min(_tail(lower - effect.value, effect) for effect in finding.effects)
    return holds, min(1.0, len(finding.effects) * fails)


def _tail(distance: float, effect: Effect) -> float:
    if not math.isfinite(effect.error):
        return 1.0
    if abs(distance) <= ROUNDING:  # a value at the margin is told by no float's last digit
        return 0.5
    if effect.error == 0:
        return float(distance < 0)
    return tail(distance / effect.error, effect.df)


def _size(claim: Claim, measured: Measured) -> Finding:
    """Return whether the computed figure has the printed digits."""
    link, metric = claim.links[0], claim.metric or ""
    sides = [measured.sizes.get((side[0], metric)) for side in (link.better, link.than) if side is not None]
    if any(side is None for side in sides):
        return Finding(claim, "not run", reason="no such size")
    numbers = [side for side in sides if side is not None]
    value = numbers[1] / numbers[0] if len(numbers) == 2 else numbers[0]
    printed = claim.printed or ""
    digits = len(printed.partition(".")[2])
    return Finding(claim, "reproduced" if f"{value:.{digits}f}" == printed else "contradicted", value=value)
