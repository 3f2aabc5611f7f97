"""Judge a run against a baseline: a verdict for each gated metric and each record."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mobilebert.compare.baseline import Baseline
from mobilebert.compare.differences import comparable, own_change
from mobilebert.compare.metrics import Better, better
from mobilebert.compare.rule import LEAST_SEEDS, judge_fresh, judge_times
from mobilebert.compare.side import Side, is_usable
from mobilebert.study.sections import TIMING
from mobilebert.util.errors import UserError

Verdict = Literal["same", "pass", "worse", "suspicious", "missing", "edited", "not comparable", "ignored"]
HOLDS = ("same", "pass", "ignored")
FAILS = ("worse", "suspicious", "missing", "edited")  # whatever else could not be compared


@dataclass(frozen=True)
class GateRow:
    """The verdict on a gated metric or on a record.

    base, new: means, or medians of times; None without a value.
    """

    what: str
    verdict: Verdict
    reason: str
    base: float | None = None
    new: float | None = None

    @property
    def holds(self) -> bool:
        """Return whether the gate may pass."""
        return self.verdict in HOLDS


def parts(metric: str) -> list[tuple[str, str]]:
    """Return (job, metric) of a gated metric; for a ratio of times two of them."""
    return [(side.partition(":")[0], side.partition(":")[2]) for side in metric.split(" / ")]


def values_of(side: Side, metric: str) -> tuple[float | None, ...]:
    """Return a gated metric of every run, as a number or a ratio; None for a run without it."""
    columns = []
    for job, name in parts(metric):
        facts = side.jobs.get(job)
        columns.append(facts.metrics.get(name, ()) if facts else ())
    found = []
    for place in range(len(side.seeds)):
        row = [column[place] if place < len(column) else None for column in columns]
        upper, lower = (row[0], row[1]) if len(row) == 2 else (row[0], 1.0)
        value = None if upper is None or not lower else upper / lower
        found.append(value if is_usable(value) else None)
    return tuple(found)


def direction(metric: str) -> Better:
    """Return which way a gated metric is better. Raises UserError if neither way is."""
    found = better(parts(metric)[0][1])
    if found is None:
        raise UserError(
            f"gate.metrics: {metric}: neither a high nor a low value is better; name a loss, a score or a ratio of times"
        )
    return found


def gate(baseline: Baseline, base: Side, new: Sequence[Side]) -> list[GateRow]:
    """Return a row for each gated metric, and for each record that is edited, missing or of another
    experiment.

    new: the sides to judge; the first holds the runs, any further one differs in configuration.
    """
    rule, runs = baseline.gate, new[0]
    rows = [_metric(metric, baseline, base, runs) for metric in rule.metrics]
    judged = {job for metric in rule.metrics for job, _ in parts(metric)}
    rows += _records(base, runs, rule.ignore, judged)
    for other in new[1:]:
        rows.append(GateRow(other.name, "not comparable", f"its configuration or data are not those of {runs.name}"))
    return rows


def exit_code(rows: Sequence[GateRow]) -> int:
    """Return 0 if all rows hold, 1 if one does not, 2 if none fails but no metric was compared."""
    is_compared = any(row.base is not None and row.new is not None for row in rows)
    if not is_compared and not any(row.verdict in FAILS for row in rows):
        return 2
    return 0 if all(row.holds for row in rows) else 1


def _metric(metric: str, baseline: Baseline, base: Side, new: Side) -> GateRow:
    rule, jobs, timing = baseline.gate, [job for job, _ in parts(metric)], metric.endswith(TIMING)
    may_lack = any(job in rule.ignore for job in jobs)
    before, now = values_of(base, metric), values_of(new, metric)
    known, values = ([value for value in column if value is not None] for column in (before, now))
    if edited := [(job, problem) for job in jobs if (problem := _edit(job, new))]:
        return GateRow(metric, "edited", " ".join(edited[0]))
    if len(known) < LEAST_SEEDS:
        return GateRow(metric, "ignored" if may_lack else "missing", f"{len(known)} seeds of the baseline have a value")
    if not values or (len(values) < len(now) and not may_lack):
        reason = f"no value in {len(now) - len(values)} of {len(now)} runs{_status(new, jobs)}"
        return GateRow(metric, "ignored" if may_lack else "missing", reason)
    for job in jobs:
        if problem := _other_experiment(job, base, new) or (_other_processor(job, base, new) if timing else None):
            return GateRow(metric, "ignored" if may_lack else "not comparable", problem)
    middle = statistics.median if timing else statistics.fmean
    mean = middle(known)
    twins = dict(zip(base.seeds, before, strict=True))
    runs = [(seed, value) for seed, value in zip(new.seeds, now, strict=True) if value is not None]
    if all(twins.get(seed) == value for seed, value in runs):
        return GateRow(metric, "same", "the baseline's seeds, equal to the digit", mean, middle(values))
    if timing:  # a seed decides no time, but a seed's same digits are the same timing: the baseline's, or a copy
        fresh = [value for seed, value in dict.fromkeys(runs) if twins.get(seed) != value]
    else:  # a seed counts once, however many runs have it
        fresh = list({seed: value for seed, value in runs if seed not in twins}.values())
    if len(fresh) < (1 if timing else rule.fresh):
        more = f"{len(fresh)} of {rule.fresh} fresh seeds; run more: mobilebert seeds FIRST-LAST --study {baseline.study}"
        return GateRow(metric, "missing", more, mean, middle(values))
    if timing:
        reason = f"the median of {len(fresh)} against that of {len(known)}" if fresh[1:] else f"one timing against {len(known)}"
        return GateRow(metric, judge_times(known, fresh, rule.fresh), reason, mean, middle(fresh))
    verdict = judge_fresh(known, fresh, len(rule.metrics), direction(metric))
    return GateRow(metric, verdict, f"{len(fresh)} fresh seeds against {len(known)}", mean, middle(fresh))


def _other_experiment(job: str, base: Side, new: Side) -> str | None:
    problem = comparable(job, base, new)
    return f"another experiment: {problem}" if problem else None


def _other_processor(job: str, base: Side, new: Side) -> str | None:
    """Return how the processors of a timing differ. On another one the ratio of two models is
    another."""
    sides = [{key: value for key, value in one.jobs[job].environment.items() if "processor" in key} for one in (base, new)]
    if sides[0] == sides[1]:
        return None
    before, now = (" ".join(found.values()) or "an unnamed processor" for found in sides)
    return f"on {now}, the baseline on {before}"


def _status(side: Side, jobs: Sequence[str]) -> str:
    """Return the statuses of a side's records if one is not ok, for the end of a reason."""
    found = {status for job in jobs if job in side.jobs for status in side.jobs[job].status if status != "ok"}
    return f" ({', '.join(sorted(found))})" if found else ""


def _edit(job: str, new: Side) -> str | None:
    """Return why a record's values may not be those that its job wrote; None if they are."""
    if job in new.edited:
        return "was changed after it was written"
    return "has no checksum, so it may have been edited" if job in new.unsealed else None


def _records(base: Side, new: Side, ignore: Collection[str], judged: Collection[str]) -> list[GateRow]:
    """Return a row for each record, behind no gated metric, that was edited, that a run lacks, or
    that is of another experiment."""
    rows = []
    for job in dict.fromkeys([*base.jobs, *new.edited, *new.unsealed]):
        if job in judged:
            continue
        facts = new.jobs.get(job)
        if problem := _edit(job, new):
            rows.append(GateRow(job, "edited", problem))
        elif facts is None or "missing" in facts.status:
            count = facts.status.count("missing") if facts else len(new.seeds)
            rows.append(GateRow(job, "ignored" if job in ignore else "missing", f"no record in {count} of {len(new.seeds)} runs"))
        elif problem := own_change(job, base, new):
            rows.append(GateRow(job, "ignored" if job in ignore else "not comparable", f"another experiment: {problem}"))
    return rows
