"""The search of the fine-tuning settings: which runs it makes, and which setting they choose. Pure functions.

Paper section 4.3: batch size 16, 32 or 48, learning rate 1e-5 to 1e-4 in steps of 1e-5, 2 to 10 epochs: 3 x 10 x 9 = 270
settings a task; the best on the development set is taken, the set that is then reported, so a score is that of a chosen run.
A run of 10 epochs is no continuation of one of 5: the rate decays
over the whole run, so the numbers of epochs are runs of their own.
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

SEED = 1_000_000  # of the search's runs, not one of the seeds that are reported: those did not choose their setting

KEPT = 3  # successive halving keeps the best third of a rung

RUNGS = (9, 3, 1)  # and a rung's runs see a ninth, a third, all of the training rows, so each costs a third of the next


Searched = TaskConfig | Finetune  # a job's configuration, or the study's for all tasks: the counts are alike


@dataclass(frozen=True)
class Trial:
    """One run: a setting, a seed, the part of the training rows that it sees (1/`part` of them), and what it is for."""

    batch_size: int
    learning_rate: float
    epochs: int
    seed: int
    part: int = 1
    role: Literal["search", "seed"] = "seed"

    @property
    def setting(self) -> dict:
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def name(self) -> str:
        """Name of the run's files and of its line in runs.jsonl."""
        if self.role == "seed":
            return f"seed{self.seed}"
        return f"search-b{self.batch_size}-lr{self.learning_rate}-e{self.epochs}" + (f"-part{self.part}" if self.part > 1 else "")


def grid(config: Searched) -> list[dict]:
    """Every setting that `config.search` tries.

    `paper`: the paper's 270. `quick`: the task's own setting, half and twice its learning rate, each with its epochs and twice
    as many: six, at any scale of the model. `none`: the task's own setting.
    """
    axes = PAPER if config.search == "paper" else {axis: (getattr(config, axis),) for axis in AXES}
    if config.search == "quick":
        rate, epochs = config.learning_rate, config.epochs
        assert rate is not None
        assert epochs is not None
        axes |= {"learning_rate": (rate / 2, rate, rate * 2), "epochs": (epochs, epochs * 2)}
    return [dict(zip(AXES, values, strict=True)) for values in product(*(axes[axis] for axis in AXES))]


def rungs(config: Searched) -> list[tuple[int, int]]:
    """(number of runs, part) of each rung: one over all rows for the plain grid, three for successive halving.

    Fewer rows are fewer steps, so the first rungs of halving favour high rates and many epochs: the plain grid is the paper's.
    """
    if config.search == "none":
        return []
    count, found = len(grid(config)), []
    for part in RUNGS if config.halving else RUNGS[-1:]:
        found.append((count, part))
        count = math.ceil(count / KEPT)
    return found


def search(config: Searched, scores_of: Callable[[list[Trial]], list[float | None]]) -> dict:
    """The chosen setting: the best of the last rung, the earlier in the grid where two are equal.

    scores_of: runs the trials of one rung and returns their scores on the development set, None for one that diverged.
    """
    settings = grid(config)
    for count, part in rungs(config):
        trials = [Trial(**setting, seed=SEED, part=part, role="search") for setting in settings[:count]]
        settings = [trial.setting for trial in ranked(trials, scores_of(trials))]
    return settings[0]


def ranked(trials: Sequence[Trial], scores: Sequence[float | None]) -> list[Trial]:
    """Trials from the best score to the worst, those that diverged last; equal ones in their order."""
    known = [-math.inf if score is None else score for score in scores]
    order = sorted(range(len(trials)), key=known.__getitem__, reverse=True)
    return [trials[place] for place in order]


def stacks(trials: Sequence[Trial], most: int) -> list[list[Trial]]:
    """The trials in groups, as even as they can be, of at most `most` that differ in learning rate and seed alone: a stack's runs
    have equal batches and equal numbers of steps. Of the paper's grid these are 27 times ten. All ninety of one batch size would
    mean that runs leave a stack one after the other, and a kernel that does ten runs' work waits for its launch no more."""
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
    """Runs of the whole job: those of the search, and the chosen setting with every seed."""
    return sum(count for count, _ in rungs(config)) + len(config.seeds)


def passes(config: Searched) -> float:
    """Passes over the training rows in the whole job, expected before it runs: of the settings that are not known yet
    (of the later rungs, and the chosen one) the grid's mean number of epochs."""
    settings = grid(config)
    mean = sum(setting["epochs"] for setting in settings) / len(settings)
    return sum(count * mean / part for count, part in rungs(config)) + mean * len(config.seeds)
