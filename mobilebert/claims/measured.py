"""Hold what a study measured, as far as claims read it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Arm = str  # a row, or a row with ":int8"
LEAST_BELOW_UNIGRAM = 1.0  # nats that a teacher must stand below the unigram entropy
LEAST_AHEAD = 0.2  # nats that it must stand ahead of the scratch student at that student's end


@dataclass(frozen=True)
class Pretrained:
    """A row pre-trained with one seed.

    loss: held-out masked-LM loss in nats; None if the run diverged. tokens: how many the row itself
    read, in transfer, distillation and pre-training together. layout: its architecture, as a text.
    """

    loss: float | None
    unigram: float = float("inf")
    tokens: float = 0.0
    layout: str = ""

    @property
    def has_learnt(self) -> bool:
        """Return whether the loss is below the unigram entropy."""
        return self.loss is not None and self.loss < self.unigram


@dataclass(frozen=True)
class Answers:
    """Whether each row of a task was answered correctly, by one arm with one seed.

    correct: None if the predictions are not there. is_whole: whether no row was left out.
    idx: which rows they are; () if not known.
    """

    correct: np.ndarray | None
    is_whole: bool = True
    failed: bool = False
    idx: tuple[int, ...] = ()


@dataclass(frozen=True)
class Score:
    """A score in percentage points: its value for every seed, and the variance of one over rows."""

    values: tuple[float, ...]
    row_variance: float
    failed: bool = False


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every row that was timed together, each in a fresh process.

    void: why the timing is disturbed; None if it is not.
    setup: engine, threads, batch and length; only timings of one setup are pooled.
    """

    milliseconds: dict[str, float]
    device: str = ""
    void: str | None = None
    setup: str = ""


@dataclass(frozen=True)
class Measured:
    """Everything that claims are judged on. Each field may be empty.

    losses: row -> seed -> run. teachers: the teachers' rows. answers: task -> arm -> seed.
    scores: column of a claim -> row. sizes: (preset, metric) -> value.
    scaled: rows trained at a smaller scale, on a part of the data or on generated data.
    """

    losses: dict[str, dict[int, Pretrained]] = field(default_factory=dict)
    teachers: dict[str, dict[int, Pretrained]] = field(default_factory=dict)
    answers: dict[str, dict[Arm, dict[int, Answers]]] = field(default_factory=dict)
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    sizes: dict[tuple[str, str], float] = field(default_factory=dict)
    scaled: frozenset[str] = frozenset()
