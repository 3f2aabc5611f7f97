"""Draw studies whose truth is known, to count how often the verdicts on the primary claims err."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mobilebert.claims.judge import judge
from mobilebert.claims.measured import Answers, Measured, Pretrained, Timing
from mobilebert.paper.claims import claims

PRIMARY = tuple(claim for claim in claims() if claim.standing == "primary")
TOLD = ("reproduced", "contradicted")
UNIGRAM, SEEDS, TASKS = 9.0, 3, ("sst2", "qnli")
LADDER = ("scratch", "student-pd", "student-pd-fmt", "mobilebert")
SCHEDULES = ("mobilebert-jkt", "mobilebert-akt")
NAT, POINT, SPEED = 0.05, 0.01, float(next(claim.printed for claim in PRIMARY if claim.kind == "speed")) * 0.9


def truth(gains, order):
    """Return the true loss of every row.

    gains: what PD, FMT and AT gain, one after the other. order: what a schedule gains on the next.
    """
    losses = dict(zip(LADDER, 6.0 - np.cumsum([0.0, *gains]), strict=True))
    return losses | dict(zip(SCHEDULES, losses["mobilebert"] + order * np.array([1, 2]), strict=True))


@dataclass(frozen=True)
class Margin:
    """A truth at which some claims stand at their margins: to tell one of those is an error."""

    losses: dict[str, float]
    claims: frozenset[str]
    int8: float = -POINT
    ratio: float = SPEED


EVERY = frozenset(claim.id for claim in PRIMARY)
MARGINS = {
    "every lesson helps by just the margin": Margin(truth([NAT] * 3, -NAT), EVERY - {"teacher-pays"}),
    "every lesson harms by just the margin": Margin(truth([-NAT] * 3, -NAT), EVERY - {"teacher-pays"}),
    "the teacher pays just the margin": Margin(truth([NAT, 0.0, 0.0], -NAT), EVERY - {"fmt-gains-most"}),
    # Holm's last level is the widest: seven claims are true by far.
    "one lesson helps by just the margin": Margin(
        truth([0.5, 1.5, NAT], 1.0), frozenset({"at-helps"}), int8=0.0, ratio=2 * SPEED
    ),
}


def draw(generator, losses, sd, *, heavy=False, failing=0.0, int8=-POINT, rows=872, ratio=SPEED):
    """Return what a study measures: six rows with three seeds, two tasks in int8, seven timings.

    sd: of a run's loss around its row and its seed. heavy: t noise with 3 degrees of freedom.
    failing: share of runs that end one nat higher, which no rule but the spread's can see.
    int8: the true change of an accuracy. ratio: the true ratio of two latencies.
    """

    def noise(*shape):
        return generator.standard_t(3, shape) / 3**0.5 if heavy else generator.normal(size=shape)

    table = np.array([*losses.values()])[:, None] + sd * (noise(len(losses), SEEDS) + noise(SEEDS))
    table += generator.random(table.shape) < failing
    runs = {
        name: {seed: Pretrained(float(loss), UNIGRAM) for seed, loss in enumerate(row)}
        for name, row in zip(losses, table, strict=True)
    }
    answers = {}
    for task in TASKS:
        arms = {"mobilebert": {}, "mobilebert:int8": {}}
        for seed in range(SEEDS):
            before = generator.random(rows) < (0.5 if generator.random() < failing else 0.9)
            spoilt, mended = 0.02 - int8 / 2, 0.02 + int8 / 2  # shares of all rows
            after = before.copy()
            share = before.mean()
            after[before] = generator.random(before.sum()) >= spoilt / share
            after[~before] = generator.random((~before).sum()) < mended / (1 - share)
            arms["mobilebert"][seed], arms["mobilebert:int8"][seed] = Answers(before), Answers(after)
        answers[task] = arms
    timings = tuple(Timing({"mobilebert": 1.0, "bert-base": ratio * float(np.exp(0.03 * x))}, "Pixel 4") for x in noise(7))
    teacher = {"ib-bert-large": {0: Pretrained(4.0, UNIGRAM)}}
    return Measured(losses=runs, teachers=teacher, answers=answers, timings=timings)


def count(studies, seed, losses, sd, **options):
    """Return (claim, verdict) -> share of studies."""
    generator, verdicts = np.random.default_rng(seed), Counter()
    for _ in range(studies):
        verdicts.update((finding.claim.id, finding.verdict) for finding in judge(PRIMARY, draw(generator, losses, sd, **options)))
    return {key: number / studies for key, number in verdicts.items()}


def errors(studies, seed, margin, sd, **options):
    """Return the share of studies that tell a claim which stands at its margin."""
    generator, wrong = np.random.default_rng(seed), 0
    for _ in range(studies):
        measured = draw(generator, margin.losses, sd, int8=margin.int8, ratio=margin.ratio, **options)
        found = judge(PRIMARY, measured)
        wrong += any(finding.claim.id in margin.claims and finding.verdict in TOLD for finding in found)
    return wrong / studies
