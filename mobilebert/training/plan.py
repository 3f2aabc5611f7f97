"""Define what a training does at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mobilebert.training.batches import Batch

Losses = dict[str, torch.Tensor]  # "loss" is minimised, the others are its terms


@dataclass
class TrainingPlan:
    """A plan of what the loop does at each step.

    Every callable is a function of the step alone, so a resumed training gives the same weights.
    With `max_minutes` training ends when they are over, however many steps that took, and `steps`
    is only the scale of the schedule: `loss`, `rate` and `prepare` get the elapsed share of the
    time times `steps` in place of the step.
    """

    steps: int
    batch: Callable[[int], Batch]  # under torchrun: this process's rows, and `whole` (see `batches.split`)
    loss: Callable[[Batch, int], Losses]  # means over rows; other means use the weights of `batches.split`
    rate: Callable[[int], float]  # multiplies the optimizer's learning rate
    seed: int
    prepare: Callable[[int], None] = lambda step: None  # before a step: which parameters learn
    clip_norm: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 1000
    accumulate: int = 1  # micro-batches into which a process splits its share of a batch
    by_row: bool = False  # draw dropout row by row (see `dropout`); only on a CPU and in blocks that are not compiled
    compile: bool = False
    graph: bool = False  # steps from CUDA graphs: the loss may then depend only on tensors and on the stage
    stage: Callable[[int], int | None] = lambda step: None  # each stage has its graphs and its measured speed
    predictions: int = 0  # most masked positions of a row; with graphs every row is padded to as many
    max_minutes: float | None = None
    save_last: bool = False  # save after the last step even if the training was short: another process continues from it
    evaluate: Callable[[], dict[str, float]] | None = None  # returns held-out figures for the curves
    flops_per_token: Callable[[int, int], float] | None = None  # from a step's (place on the schedule, padded length)
