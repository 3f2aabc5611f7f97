"""Decide what a claim's test may use of the measured values, and why it cannot be tested."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilebert.claims.effects import Effect, contrast, log_ratio, paired, paired_over_tasks, score_difference, too_wide
from mobilebert.claims.measured import LEAST_AHEAD, LEAST_BELOW_UNIGRAM, Answers, Measured
from mobilebert.paper import models
from mobilebert.paper.claims import OF_LOSSES, Claim, Link

PAPER_DEVICE = "Pixel 4"
ROUNDING = 1e-9  # so that 5.0 - 4.8 is not less than 0.2 by a float's last digit

Problem = Literal["not run", "void", "other device", "inconclusive"]


@dataclass(frozen=True)
class Evidence:
    """The effect of every link, or why there is no test.

    details: what the effects are made of, for example a task with one seed.
    """

    effects: tuple[Effect, ...] = ()
    problem: Problem | None = None
    reason: str = ""
    details: tuple[Effect, ...] = ()


def evidence(claim: Claim, measured: Measured) -> Evidence:
    """Return what the measured values say on a claim that is not a size."""
    if not claim.scaled and (small := [row for row in claim.rows if row in measured.scaled]):
        return Evidence(problem="not run", reason=f"only a run at the paper's scale may speak to it; {small[0]} is none")
    if claim.kind in OF_LOSSES:
        return _of_losses(claim, measured)
    if claim.kind == "no loss":
        return _of_answers(claim, measured)
    return _of_timings(claim, measured) if claim.kind == "speed" else _of_scores(claim, measured)


# --- held-out losses


def _of_losses(claim: Claim, measured: Measured) -> Evidence:
    missing = [row for row in claim.rows if not measured.losses.get(row)]
    missing += [name for name in _teachers(claim) if not measured.teachers.get(name)]
    if missing:
        return Evidence(problem="not run", reason=f"no record of {', '.join(missing)}")
    if "teacher behind" in claim.void_if and _teachers(claim) and _scratch_loss(measured) is None:
        return Evidence(problem="not run", reason="no record of a student trained alone, to compare the teacher with")
    if problem := _teacher_problem(claim, measured) or _failed_runs(claim, measured) or _unequal(claim, measured):
        return Evidence(problem="void", reason=problem)
    learnt: dict[str, Mapping[int, float]] = {
        row: {seed: run.loss for seed, run in runs.items() if run.loss is not None}
        for row, runs in measured.losses.items()
        if runs and all(run.has_learnt for run in runs.values())
    }
    wide = too_wide(learnt)
    pooled = [row for row in learnt if row not in wide]
    effects = tuple(contrast(learnt, _weights(link), pooled) for link in claim.links)
    least = min(effect.n for effect in effects)
    if least < claim.least:
        return Evidence(effects, "inconclusive", f"{least} of {claim.least} seeds")
    if own := [row for row in claim.rows if row in wide]:
        return Evidence(effects, "inconclusive", f"the seeds of {own[0]} lie over three times as far apart as the median row's")
    return Evidence(effects)


def _weights(link: Link) -> dict[str, float]:
    """Return row -> weight of its loss in the link's effect; a lower loss is better."""
    assert link.than is not None
    found: dict[str, float] = {}
    for side, sign in ((link.better, -1.0), (link.than, 1.0)):
        for row, factor in zip(side, (1.0, -1.0), strict=False):
            found[row] = found.get(row, 0.0) + sign * factor
    return found


def _teachers(claim: Claim) -> list[str]:
    return sorted({teacher for row in claim.rows if (teacher := models()[row].teacher)})


def _teacher_problem(claim: Claim, measured: Measured) -> str | None:
    """Return why the teacher has nothing to teach; None if it has, or if there is none."""
    for name in _teachers(claim):
        runs = measured.teachers[name]
        if any(run.loss is None for run in runs.values()):
            return f"no loss of the teacher, {name}"
        worst = max(runs.values(), key=lambda run: run.loss or 0.0)
        assert worst.loss is not None
        lead = worst.unigram - worst.loss
        if "teacher unread" in claim.void_if and not math.isfinite(lead):
            return f"no unigram entropy in the record of the teacher, {name}"
        if "teacher unread" in claim.void_if and lead < LEAST_BELOW_UNIGRAM - ROUNDING:
            return f"the teacher stands {lead:.2f} nat below the unigram entropy; it must stand {LEAST_BELOW_UNIGRAM} below"
        if "teacher behind" in claim.void_if:
            alone = _scratch_loss(measured)
            assert alone is not None
            if alone - worst.loss < LEAST_AHEAD - ROUNDING:
                ahead = alone - worst.loss
                where = f"{abs(ahead):.2f} nat {'ahead of' if ahead >= 0 else 'behind'}"
                return f"the teacher is {where} the student trained alone; it must be {LEAST_AHEAD} ahead"
    return None


def _scratch_loss(measured: Measured) -> float | None:
    """Return the lowest mean loss of a row that trains without a teacher."""
    means = []
    for row, runs in measured.losses.items():
        losses = [run.loss for run in runs.values() if run.loss is not None]
        if losses and models()[row].teacher is None:
            means.append(sum(losses) / len(losses))
    return min(means, default=None)


def _failed_runs(claim: Claim, measured: Measured) -> str | None:
    for row in claim.rows if "failed run" in claim.void_if else ():
        for seed, run in measured.losses[row].items():
            if not run.has_learnt:
                return f"{row} with seed {seed} has not learnt"
    return None


def _unequal(claim: Claim, measured: Measured) -> str | None:
    runs = [(row, run) for row in claim.rows for run in measured.losses[row].values()]
    first, one = runs[0]
    for row, run in runs:
        if "layout" in claim.same and run.layout != one.layout:
            return f"{first} and {row} have different layouts"
        if "tokens" in claim.same and abs(run.tokens - one.tokens) > 0.01 * one.tokens:
            return f"{first} read {one.tokens / 1e6:.2f} million tokens, {row} {run.tokens / 1e6:.2f}"
    return None


# --- answers to the rows of tasks


def _of_answers(claim: Claim, measured: Measured) -> Evidence:
    """Return the mean effect over the tasks that all models have learnt.

    An int8 model need not have: if it collapses, that is the effect.
    """
    link = claim.links[0]
    assert link.than is not None
    arms = link.better[0], link.than[0]
    tables, tasks, details, small, unlearnt = [], [], [], [], []
    unread = ""
    for task in claim.tasks:
        sides = [measured.answers.get(task, {}).get(arm, {}) for arm in arms]
        seeds = sorted(set(sides[0]) & set(sides[1]))
        if not seeds:
            continue
        runs: list[Answers] = [side[seed] for side in sides for seed in seeds]
        trained = [side[seed] for arm, side in zip(arms, sides, strict=True) if ":" not in arm for seed in seeds]
        if "failed run" in claim.void_if and any(run.failed for run in trained):
            unlearnt.append(task)
            continue
        if any(run.correct is None for run in runs):
            unread = f"the predictions on {task} are not beside the records"
            continue
        if len({(run.idx, len(run.correct)) for run in runs if run.correct is not None}) > 1:
            unread = f"the models or seeds were scored on different rows of {task}"
            continue
        differences = {seed: _difference(sides[0][seed], sides[1][seed]) for seed in seeds}
        tables.append(differences)
        pooled = paired(differences)
        tasks.append(Effect(pooled.value, pooled.error, pooled.df, pooled.n, task))
        details += [_named(paired({seed: differences[seed]}), f"{task}, seed {seed}") for seed in seeds if len(seeds) > 1]
        if pooled.n < claim.least and not all(run.is_whole for run in runs):
            small.append(f"{task}: {pooled.n:,} of {claim.least:,} rows")
    if not tasks and unlearnt and not unread:
        return Evidence(problem="void", reason=f"a model has not learnt {', '.join(unlearnt)}")
    if not tasks:
        return Evidence(problem="not run", reason=unread or f"no record of {' and '.join(arms)}")
    effects, parts = (paired_over_tasks(tables),), (*tasks, *details)
    if unread:  # a task that lost its predictions must not decide by its absence
        return Evidence(effects, "inconclusive", unread, parts)
    if small:
        return Evidence(effects, "inconclusive", "; ".join(small), parts)
    return Evidence(effects, details=parts)


def _difference(one: Answers, other: Answers) -> np.ndarray:
    """Return (rows,) of -1, 0 or 1: whether one arm alone answered the row correctly."""
    assert one.correct is not None
    assert other.correct is not None
    return one.correct.astype(float) - other.correct.astype(float)


def _named(effect: Effect, name: str) -> Effect:
    return Effect(effect.value, effect.error, effect.df, effect.n, name)


# --- speeds and scores


def _of_timings(claim: Claim, measured: Measured) -> Evidence:
    link = claim.links[0]
    assert link.than is not None
    (better,), (than,) = link.better, link.than
    timed = [timing for timing in measured.timings if {better, than} <= set(timing.milliseconds)]
    if not timed:
        return Evidence(problem="not run", reason=f"no timing of {better} beside {than}")
    quiet = [timing for timing in timed if timing.void is None]
    if not quiet:
        return Evidence(problem="void", reason=f"disturbed timing: {timed[0].void}")
    setups = sorted({timing.setup for timing in quiet})
    if len(setups) > 1:
        return Evidence(problem="inconclusive", reason=f"timings that cannot be pooled: {'; '.join(setups)}")
    effects = (log_ratio([timing.milliseconds[than] / timing.milliseconds[better] for timing in quiet]),)
    others = sorted({timing.device for timing in quiet if PAPER_DEVICE not in timing.device})
    if others:
        return Evidence(effects, "other device", f"timed on {', '.join(others)}, not on a {PAPER_DEVICE}")
    if len(quiet) < claim.least:
        return Evidence(effects, "inconclusive", f"{len(quiet)} of {claim.least} timings in fresh processes")
    return Evidence(effects)


def _of_scores(claim: Claim, measured: Measured) -> Evidence:
    link, found = claim.links[0], measured.scores.get(claim.column or "", {})
    missing = [row for row in claim.rows if row not in found]
    if missing:
        return Evidence(problem="not run", reason=f"no score of {', '.join(missing)}")
    sides = [found[row] for row in claim.rows]
    if "failed run" in claim.void_if and any(side.failed for side in sides):
        return Evidence(problem="void", reason="a model has not learnt the task")
    than = found[link.than[0]].values if link.than else None
    return Evidence((score_difference(sides[0].values, than, [side.row_variance for side in sides]),))
