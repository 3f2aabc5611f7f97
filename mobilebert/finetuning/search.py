"""Plan the trials of a search of fine-tuning settings and choose the best setting.

All functions are pure. Paper section 4.3: batch size 16, 32 or 48, learning rate 1e-5 to 1e-4 in
steps of 1e-5, 2 to 10 epochs: 3 x 10 x 9 = 270 settings a task. The best on the development set is
chosen, and trained anew with each reported seed. Scores are reported on that same set, so they
favour the chosen setting.

A trial of 10 epochs cannot continue one of 5, because the learning rate decays over the whole
trial. So each number of epochs needs a trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

from mobilebert.study.recipe import AXES, Finetune
from mobilebert.study.stage_config import TaskConfig

PAPER = {
    "batch_size": (16, 32, 48),
    "learning_rate": tuple(step / 100_000 for step in range(1, 11)),
    "epochs": tuple(range(2, 11)),
}

SEED = 1_000_000  # of the search's trials; keep it out of a study's `seeds`, so that no reported score chose its setting

KEPT = 3  # successive halving keeps the best third of a rung

RUNGS = (9, 3, 1)  # a trial sees 1/9, 1/3, then all of the training rows, and so costs a third of one in the next rung


Searched = TaskConfig | Finetune  # one task's configuration or the study's; both give the same counts


@dataclass(frozen=True)
class Trial:
    """One fine-tuning run: a setting, a seed and a role. It sees 1/`part` of the training rows."""

    batch_size: int
    learning_rate: float
    epochs: int
    seed: int
    part: int = 1
    role: Literal["search", "seed"] = "seed"

    @property
    def setting(self) -> dict:
        """Return batch size, learning rate and epochs by name."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def name(self) -> str:
        """Return the name of the trial's files and of its line in runs.jsonl."""
        if self.role == "seed":
            return f"seed{self.seed}"
        return f"search-b{self.batch_size}-lr{self.learning_rate}-e{self.epochs}" + (f"-part{self.part}" if self.part > 1 else "")


def grid(config: Searched) -> list[dict]:
    """Return every setting that `config.search` tries.

    paper: the paper's 270.
    quick: six: half, once and twice the configured learning rate, each with once and twice the
        configured number of epochs.
    none: the configured setting.
    """
    axes = PAPER if config.search == "paper" else {axis: (getattr(config, axis),) for axis in AXES}
    if config.search == "quick":
        rate, epochs = config.learning_rate, config.epochs
        assert rate is not None
        assert epochs is not None
        axes |= {"learning_rate": (rate / 2, rate, rate * 2), "epochs": (epochs, epochs * 2)}
    return [dict(zip(AXES, values, strict=True)) for values in product(*(axes[axis] for axis in AXES))]


def rungs(config: Searched) -> list[tuple[int, int]]:
    """Return (number of trials, part) of each rung.

    The plain grid, which is the paper's, has one rung over all rows. Successive halving has three;
    fewer rows mean fewer steps, so its first rungs favour high learning rates and many epochs.
    """
    if config.search == "none":
        return []
    count, found = len(grid(config)), []
    for part in RUNGS if config.halving else RUNGS[-1:]:
        found.append((count, part))
        count = math.ceil(count / KEPT)
    return found


def search(config: Searched, scores_of: Callable[[list[Trial]], list[float | None]]) -> dict:
    """Return the best setting of the last rung.

    Of settings with equal scores, return the one that ranked higher in the rung before; in a single
    rung, the earliest in the grid.

    scores_of: runs the trials of one rung and returns their scores on the development set, None for
    a trial that diverged.
    """
    settings = grid(config)
    for count, part in rungs(config):
        trials = [Trial(**setting, seed=SEED, part=part, role="search") for setting in settings[:count]]
        settings = [trial.setting for trial in ranked(trials, scores_of(trials))]
    return settings[0]


def ranked(trials: Sequence[Trial], scores: Sequence[float | None]) -> list[Trial]:
    """Return the trials from best to worst score, diverged ones last, equal ones in their order."""
    known = [-math.inf if score is None else score for score in scores]
    order = sorted(range(len(trials)), key=known.__getitem__, reverse=True)
    return [trials[place] for place in order]


def stacks(trials: Sequence[Trial], most: int) -> list[list[Trial]]:
    """Return the trials in stacks of at most `most`, as even in size as possible.

    The trials of a stack differ in learning rate and seed alone, so they have equal batch sizes and
    equal numbers of steps. The paper's grid gives 27 stacks of ten. A stack of all ninety trials of
    one batch size would gain nothing: its trials would end one after the other, and with ten trials
    a kernel's launch is no bottleneck any more.
    """
    alike: dict[tuple, list[Trial]] = {}
    for trial in trials:
        alike.setdefault((trial.batch_size, trial.epochs, trial.part), []).append(trial)
    found = []
    for group in alike.values():
        count = math.ceil(len(group) / most)
        bounds = [len(group) * index // count for index in range(count + 1)]
        found += [group[start:end] for start, end in pairwise(bounds)]
    return found


def total(config: Searched) -> int:
    """Return the number of trials of a job: those of the search, and one for each seed."""
    return sum(count for count, _ in rungs(config)) + len(config.seeds)


def passes(config: Searched) -> float:
    """Return the expected number of passes over the training rows in the whole job.

    Settings that are not known before it runs (in later rungs, and the chosen one) count with the
    grid's mean number of epochs.
    """
    settings = grid(config)
    mean = sum(setting["epochs"] for setting in settings) / len(settings)
    return sum(count * mean / part for count, part in rungs(config)) + mean * len(config.seeds)
