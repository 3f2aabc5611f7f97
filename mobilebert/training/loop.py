"""The one training loop: teacher, transfer, distillation and fine-tuning differ only in batch, loss and rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mobilebert.errors import UserError
from mobilebert.progress import Speed, bar, peak_flops
from mobilebert.records import Diverged, Run
from mobilebert.training import checkpoint
from mobilebert.training.batches import Batch, ahead, digest, split
from mobilebert.training.device import compile_blocks
from mobilebert.training.parallel import World, world

Losses = dict[str, torch.Tensor]  # "loss" is what is minimised, the others are its parts
CURVE_POINTS, EVALUATIONS = 200, 10  # of a run: enough to draw, few enough to keep and to pay for


@dataclass
class Task:
    """What a loop does at a step. Every callable is a function of the step alone, so a resumed run is the same run.

    With `max_minutes` the run ends when they are over, however many steps that took, and `steps` is only the scale of the
    schedule: `loss`, `rate` and `prepare` get the elapsed share of the time times `steps` in place of the step.
    """

    steps: int
    batch: Callable[[int], Batch]
    loss: Callable[[Batch, int], Losses]  # means over rows; other means take the weights of `batches.split`
    rate: Callable[[int], float]  # multiplies the optimizer's learning rate
    seed: int
    prepare: Callable[[int], None] = lambda step: None  # before a step: which parameters learn
    clip_norm: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 1000
    accumulate: int = 1  # micro-batches that a process makes of its share of a batch
    compile: bool = False
    max_minutes: float | None = None
    save_last: bool = False  # the state after the last step, of a short run too: another process ends it
    evaluate: Callable[[], dict[str, float]] | None = None  # held-out figures, for the curves
    flops_per_token: Callable[[int, int], float] | None = None  # of a step's (place on the schedule, padded length)
    stage: Callable[[int], int] | None = None  # that a place on the schedule belongs to: the speed of each is told apart


class _Clock:
    """Where on its schedule a run is: at the step, or at the share of its time that has gone."""

    def __init__(self, task: Task, used: float, speed: Speed, group: World):
        self.task, self.used, self.speed, self.group = task, used, speed, group

    @property
    def seconds(self) -> float:
        """Of all the processes that this run has had, one after the other."""
        return self.used + self.speed.seconds

    def share(self) -> float:
        return self.group.agree(self.seconds) / (60 * self.task.max_minutes)

    def place(self, step: int) -> int:
        """The step of the schedule, from 0 to steps - 1."""
        return min(int(self.share() * self.task.steps), self.task.steps - 1) if self.task.max_minutes else step

    def steps(self, done: int) -> int:
        """How many there will be, going by the `done` ones."""
        return round(done * max(1.0, 60 * self.task.max_minutes / self.seconds)) if self.task.max_minutes else self.task.steps

    def is_over(self, step: int) -> bool:
        """Whether `step` was the last."""
        return self.share() >= 1 if self.task.max_minutes else step + 1 == self.task.steps


def train(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, name: str = "train", device: str = "cpu"
) -> None:
    """Train to the end, from the last saved state if there is one; dropout is on if the caller left `model` in training mode.

    Raises Diverged, with step, batch and last good state named, when a loss is not finite; UserError where the processes do
    not begin with the same weights at the same step.
    """
    group, path, fingerprint = world(), run.state / f"{name}.safetensors", f"{run.job.fingerprint}:{name}"
    if model.training:  # each part of a batch draws its own dropout: split in another way it would be another run
        fingerprint += f":{group.size}x{task.accumulate}"
    start, used = checkpoint.load(path, model, optimizer, fingerprint)
    if group.size > 1 and not group.same(start, checkpoint.weights_crc32(model)):
        raise UserError(
            f"{path}: the processes do not see the same results folder, or drew other weights: they begin at different steps or "
            "with different weights"
        )
    saved = start
    if group.leads:
        run.resume(name, start)
    if task.compile:
        compile_blocks(model)
    peaks = [item["lr"] for item in optimizer.param_groups]
    parameters = [p for item in optimizer.param_groups for p in item["params"]]
    peak = peak_flops(device)
    speed = Speed(peak and peak * group.size)
    clock = _Clock(task, used, speed, group)
    before = clock.place(start - 1) if start else -1

    def parts_of(step: int) -> tuple[Batch, list[Batch]]:
        """A step's batch, and the parts of it that this process learns from."""
        batch = task.batch(step)
        own = split(batch, group.size * task.accumulate)[group.rank * task.accumulate :][: task.accumulate]
        if device == "cuda":  # only pinned memory is copied while the device computes
            own = [{key: value.pin_memory() for key, value in part.items()} for part in own]
        return batch, own

    if start and clock.is_over(start - 1):
        steps = range(0)
    else:
        steps = itertools.count(start) if task.max_minutes else range(start, task.steps)
    step = start - 1  # the last one, where none is left
    with bar(task.steps, f"{run.job.id} {name}", start, silent=not group.leads) as progress:
        for step, (batch, own) in enumerate(speed.waiting(ahead(parts_of, steps)), start):
            place = clock.place(step)
            # A step's dropout depends on (seed, step) and on the process, not on the steps before it.
            torch.manual_seed((task.seed * 1_000_003 + step + (group.rank << 40)) % 2**63)
            task.prepare(place)
            for item, rate in zip(optimizer.param_groups, peaks, strict=True):
                item["lr"] = rate * task.rate(place)
            losses = _learn(task, own, len(batch["input_ids"]), place, device)
            trained = [p for p in parameters if p.grad is not None]
            values = torch.stack(list(losses.values()))
            group.sum([*(p.grad for p in trained), values])
            norm = nn.utils.clip_grad_norm_(trained, task.clip_norm, foreach=True)
            *points, norm = torch.cat([values, norm.reshape(1)]).tolist()  # the one moment a step waits for the device
            points = dict(zip(losses, points, strict=True))
            if not (math.isfinite(points["loss"]) and math.isfinite(norm)):
                good = f"{saved} steps, {path}" if saved else "none"
                raise Diverged(
                    f"loss {points['loss']}, gradient norm {norm} at step {step} of {task.steps}, batch {digest(batch)}; "
                    f"last good state: {good}"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tokens, length = batch["input_ids"].numel(), batch["input_ids"].shape[-1]  # padding counts in both
            flops = task.flops_per_token and tokens * task.flops_per_token(place, length)
            speed.step(tokens, flops, task.stage and task.stage(place))
            over = clock.is_over(step)
            progress.total = clock.steps(step + 1)
            progress.update()
            if group.leads:
                if _passes(before, place, task.steps // CURVE_POINTS) or over:
                    run.log(step, **{f"{name}_{key}": value for key, value in points.items()})
                    progress.set_postfix_str(f"loss={points['loss']:.3f}, {speed}", refresh=False)
                if task.evaluate and (_passes(before, place, task.steps // EVALUATIONS) or over):
                    run.log(step, **{f"{name}_{key}": value for key, value in task.evaluate().items()})
                # After the last step too, so that a failure to evaluate costs no step; not where all of them are few.
                if task.save_last or step >= task.checkpoint_every if over else (step + 1) % task.checkpoint_every == 0:
                    checkpoint.save(path, model, optimizer, step + 1, fingerprint, task.steps, clock.seconds)
                    saved = step + 1
            before = place
            if over:
                break
    for item, rate in zip(optimizer.param_groups, peaks, strict=True):
        item["lr"] = rate
    if speed.steps:
        run.details |= {f"{name}_{key}": value for key, value in speed.figures().items()}
    run.details |= {f"{name}_steps": step + 1, f"{name}_split": {"processes": group.size, "accumulate": task.accumulate}}


def _learn(task: Task, parts: list[Batch], rows: int, place: int, device: str) -> Losses:
    """Add up the gradients of `parts` of a batch of `rows` rows; their share of its losses, which have no gradient any more."""
    total: Losses = {}
    for part in parts:
        part = {key: value.to(device, non_blocking=True) for key, value in part.items()}
        share = len(part["input_ids"]) / rows
        with torch.autocast(device, torch.bfloat16, enabled=task.precision == "bf16"):
            losses = task.loss(part, place)
        (losses["loss"] * share if share < 1 else losses["loss"]).backward()
        for key, value in losses.items():
            total[key] = total.get(key, 0) + value.detach().float() * share
    return total


def _passes(before: int, place: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, place]; every place where `every` is 0."""
    every = max(1, every)
    return place // every != before // every
