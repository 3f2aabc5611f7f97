"""Run the one training loop of teacher, transfer, distillation and fine-tuning.

They differ only in batch, loss and learning rate.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mobilebert.jobs.context import JobContext
from mobilebert.training import checkpoint
from mobilebert.training.accelerated.cuda_graphs import Graphs
from mobilebert.training.batches import Batch, ahead, digest, fill_up, split
from mobilebert.training.device import compile_blocks
from mobilebert.training.distributed.processes import World, world
from mobilebert.training.distributed.sharding import Shards
from mobilebert.training.dropout import RowDropout, row_seeds
from mobilebert.util.errors import Diverged, UserError
from mobilebert.util.progress import Speed, bar, peak_flops

Losses = dict[str, torch.Tensor]  # "loss" is minimised, the others are its terms
CURVE_POINTS, EVALUATIONS = 200, 10  # a training: enough for a plot, few enough to store and to compute
SAVES = "saves"  # sent with the losses if there are several processes: 1 if the first one's clock says that a save is due


@dataclass
class Task:
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


class _Clock:
    """The place of a training on its schedule: the step, or the elapsed share of `max_minutes`."""

    def __init__(self, task: Task, used: float, speed: Speed, group: World):
        self.task, self.used, self.speed, self.group = task, used, speed, group

    @property
    def seconds(self) -> float:
        """Return the seconds of training so far, with those before it was resumed."""
        return self.used + self.speed.seconds

    def share(self) -> float:
        return self.group.agree(self.seconds) / (60 * self.task.max_minutes)

    def place(self, step: int) -> int:
        """Return the step of the schedule, from 0 to steps - 1."""
        return min(int(self.share() * self.task.steps), self.task.steps - 1) if self.task.max_minutes else step

    def steps(self, done: int) -> int:
        """Return how many steps there will be in all, estimated from the `done` ones."""
        return round(done * max(1.0, 60 * self.task.max_minutes / self.seconds)) if self.task.max_minutes else self.task.steps

    def is_over(self, step: int) -> bool:
        """Return whether `step` was the last one."""
        return self.share() >= 1 if self.task.max_minutes else step + 1 == self.task.steps


def train(
    context: JobContext, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, name: str = "train", device: str = "cpu"
) -> None:
    """Train to the end, from the last saved state if there is one.

    Dropout is on if the caller left `model` in training mode. Raises Diverged, naming step, batch
    and last good state, if the loss or the gradient norm is not finite. Raises UserError if the
    processes do not begin with the same weights at the same step, or if several of them are to
    record graphs.
    """
    group, path, fingerprint = world(), context.state / f"{name}.safetensors", f"{context.job.fingerprint}:{name}"
    if model.training and not task.by_row:  # dropout then depends on how the batch is split
        fingerprint += f":{group.size}x{task.accumulate}"
    if task.graph and group.size > 1:
        raise UserError(f"graph: true works in one process only, but torchrun started {group.size}; set graph: false")
    shards = Shards([p for item in optimizer.param_groups for p in item["params"]], group)
    start, used = checkpoint.load(path, model, optimizer, fingerprint)
    shards.drop(optimizer)
    if group.size > 1 and not group.same(start, checkpoint.weights_crc32(model)):
        raise UserError(
            f"{path}: the processes begin at different steps or with different weights; "
            "they do not see the same results folder, or initialised the model differently"
        )
    saved, pace = start, checkpoint.Pace()
    if group.leads:
        context.resume(name, start)
    if task.compile:
        compile_blocks(model)
    peaks = [item["lr"] for item in optimizer.param_groups]
    step_work = Step(task, optimizer, shards, device)
    work = Graphs(step_work) if task.graph else step_work
    peak = peak_flops(device)
    speed = Speed(peak and peak * group.size)
    clock = _Clock(task, used, speed, group)
    before = clock.place(start - 1) if start else -1

    def parts_of(step: int) -> tuple[Batch, int, list[Batch]]:
        """Return this process's rows of a step's batch, the number of rows of all processes, and
        this process's micro-batches.
        """
        batch = task.batch(step)
        mine, rows = len(batch["input_ids"]), int(batch["whole"][0]) if group.size > 1 else len(batch["input_ids"])
        seeds = {"row_seeds": row_seeds(task.seed, step, rows * group.rank // group.size, mine)} if task.by_row else {}
        own = split(batch | seeds, task.accumulate, group.size)
        if task.graph:
            own = [fill_up(part, task.predictions) for part in own]
        if device == "cuda":  # only pinned memory can be copied while the device computes
            own = [{key: value.pin_memory() for key, value in part.items()} for part in own]
        return batch, rows, own

    if start and clock.is_over(start - 1):
        steps = range(0)
    else:
        steps = itertools.count(start) if task.max_minutes else range(start, task.steps)
    step = start - 1  # stays so if no step is left
    with bar(task.steps, f"{context.job.id} {name}", start, silent=not group.leads) as progress:
        for step, (batch, rows, own) in enumerate(speed.waiting(ahead(parts_of, steps)), start):
            place = clock.place(step)
            # A step's dropout depends on seed, step and process, not on the steps before it. A CPU
            # generator reads only the lower 32 bits: the process number must change those.
            torch.manual_seed((task.seed * 1_000_003 + step + group.rank * 2_654_435_761) % 2**63)
            task.prepare(place)
            for item, rate in zip(optimizer.param_groups, peaks, strict=True):
                item["lr"] = rate * task.rate(place)
            step_work.saves = group.leads and pace.is_due()
            losses, values = work.gradients(own, rows, place)
            *points, norm = values.tolist()  # only here does a step wait for the device
            points = dict(zip(losses, points, strict=True))
            due = bool(points.pop(SAVES, step_work.saves))
            if not (math.isfinite(points["loss"]) and math.isfinite(norm)):
                good = f"{saved} steps, {path}" if saved else "none"
                raise Diverged(
                    f"loss {points['loss']}, gradient norm {norm} at step {step} of {task.steps}, batch {digest(batch)}; "
                    f"last good state: {good}"
                )
            work.update()
            length = batch["input_ids"].shape[1]  # padding counts
            flops = task.flops_per_token and rows * length * task.flops_per_token(place, length)
            speed.step(rows * length, flops, task.stage(place))
            over = clock.is_over(step)
            progress.total = clock.steps(step + 1)
            progress.update()
            if group.leads:
                if _passes(before, place, task.steps // CURVE_POINTS) or over:
                    context.log(step, **{f"{name}_{key}": value for key, value in points.items()})
                    progress.set_postfix_str(f"loss={points['loss']:.3f}, {speed}", refresh=False)
                if task.evaluate and (_passes(before, place, task.steps // EVALUATIONS) or over):
                    context.log(step, **{f"{name}_{key}": value for key, value in task.evaluate().items()})
            # Save after the last step too, so that a failed evaluation loses no step; but not if
            # the whole training was shorter than `checkpoint_every`.
            due = due or (task.save_last or step >= task.checkpoint_every if over else (step + 1) % task.checkpoint_every == 0)
            if due:
                with pace.saving(), shards.gathered(optimizer):
                    if group.leads:
                        checkpoint.save(path, model, optimizer, step + 1, fingerprint, task.steps, clock.seconds)
                saved = step + 1
            before = place
            if over:
                break
    for item, rate in zip(optimizer.param_groups, peaks, strict=True):
        item["lr"] = rate
    if speed.steps:
        context.details |= {f"{name}_{key}": value for key, value in speed.figures().items()}
    context.details |= {f"{name}_steps": step + 1, f"{name}_split": {"processes": group.size, "accumulate": task.accumulate}}


@dataclass
class Step:
    """The work of a step on the device: a function of tensors that never waits for their values."""

    task: Task
    optimizer: torch.optim.Optimizer
    shards: Shards
    device: str
    saves: bool = False  # whether this process asks to save after the step

    def gradients(self, parts: list[Batch], rows: int, place: int) -> tuple[list[str], torch.Tensor]:
        """Sum the gradients of the micro-batches `parts` and of all processes, and clip them.

        rows: of the whole batch, in all processes. Returns the losses' names, and without gradient
        a tensor (losses + 1,): their values, then the gradient norm before clipping.
        """
        total: Losses = {}
        for part in parts:
            drawn = RowDropout(part["row_seeds"]) if self.task.by_row else contextlib.nullcontext()
            part = {key: value.to(self.device, non_blocking=True) for key, value in part.items()}
            share = len(part["input_ids"]) / rows
            with torch.autocast(self.device, torch.bfloat16, enabled=self.task.precision == "bf16"), drawn:
                losses = self.task.loss(part, place)
            (losses["loss"] * share if share < 1 else losses["loss"]).backward()
            for key, value in losses.items():
                total[key] = total.get(key, 0) + value.detach().float() * share
        if self.shards.group.size > 1:  # summed with the losses: all processes save at the same step, without a further message
            total[SAVES] = torch.full((), float(self.saves), device=self.device)
        values = torch.stack(list(total.values()))
        norm = self.shards.sum(values)
        nn.utils.clip_grads_with_norm_(self.shards.parameters, self.task.clip_norm, norm, foreach=True)
        return list(total), torch.cat([values, norm.reshape(1)])

    def update(self) -> None:
        """Update the parameters in all processes, and drop the gradients."""
        self.optimizer.step()
        self.shards.spread()
        self.optimizer.zero_grad(set_to_none=True)


def _passes(before: int, place: int, every: int) -> bool:
    """Return whether a multiple of `every`, or of 1 if it is 0, lies in (before, place]."""
    every = max(1, every)
    return place // every != before // every
