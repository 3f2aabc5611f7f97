"""The one training loop: teacher, transfer, distillation and fine-tuning differ only in batch, loss and rate."""

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

Losses = dict[str, torch.Tensor]  # "loss" is what is minimised, the others are its parts
CURVE_POINTS, EVALUATIONS = 200, 10  # of a run: enough to draw, few enough to keep and to pay for
SAVES = "saves"  # beside the losses of several processes: 1 if the first one's clock says that a state is due


@dataclass
class Task:
    """What a loop does at a step. Every callable is a function of the step alone, so a resumed run is the same run.

    With `max_minutes` the run ends when they are over, however many steps that took, and `steps` is only the scale of the
    schedule: `loss`, `rate` and `prepare` get the elapsed share of the time times `steps` in place of the step.
    """

    steps: int
    batch: Callable[[int], Batch]  # under torchrun: this process's rows, and `whole` (see `batches.split`)
    loss: Callable[[Batch, int], Losses]  # means over rows; other means take the weights of `batches.split`
    rate: Callable[[int], float]  # multiplies the optimizer's learning rate
    seed: int
    prepare: Callable[[int], None] = lambda step: None  # before a step: which parameters learn
    clip_norm: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 1000
    accumulate: int = 1  # micro-batches that a process makes of its share of a batch
    by_row: bool = False  # every row draws its own dropout (see `dropout`): on a CPU, in blocks that are not compiled
    compile: bool = False
    graph: bool = False  # steps from CUDA graphs: the loss is then a function of tensors alone, and of the stage
    stage: Callable[[int], int | None] = lambda step: None  # a graph serves one, speeds are told apart
    predictions: int = 0  # masked positions of a row, at most: where steps are graphs every row takes as many
    max_minutes: float | None = None
    save_last: bool = False  # the state after the last step, of a short run too: another process ends it
    evaluate: Callable[[], dict[str, float]] | None = None  # held-out figures, for the curves
    flops_per_token: Callable[[int, int], float] | None = None  # of a step's (place on the schedule, padded length)


class _Clock:
    """Where on its schedule a run is: at the step, or at the share of its time that has gone."""

    def __init__(self, task: Task, used: float, speed: Speed, group: World):
        self.task, self.used, self.speed, self.group = task, used, speed, group

    @property
    def seconds(self) -> float:
        """Of all the processes that this run has had, one after the other."""
        return self.used + self.speed.seconds

    def share(self) -> float:
        assert self.task.max_minutes is not None
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
    context: JobContext, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, name: str = "train", device: str = "cpu"
) -> None:
    """Train to the end, from the last saved state if there is one; dropout is on if the caller left `model` in training mode.

    Raises Diverged, with step, batch and last good state named, when a loss is not finite; UserError where the processes do
    not begin with the same weights at the same step, or where more than one is to record graphs.
    """
    group, path, fingerprint = world(), context.state / f"{name}.safetensors", f"{context.job.fingerprint}:{name}"
    if model.training and not task.by_row:  # each part of a batch draws its own dropout: another split is another run
        fingerprint += f":{group.size}x{task.accumulate}"
    if task.graph and group.size > 1:
        raise UserError(f"graph: true is for one process, and torchrun started {group.size}; graph: false is allowed")
    shards = Shards([p for item in optimizer.param_groups for p in item["params"]], group)
    start, used = checkpoint.load(path, model, optimizer, fingerprint)
    shards.drop(optimizer)
    if group.size > 1 and not group.same(start, checkpoint.weights_crc32(model)):
        raise UserError(
            f"{path}: the processes do not see the same results folder, or drew other weights: they begin at different steps or "
            "with different weights"
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
        """This process's rows of a step's batch, how many all processes have, and the parts that it learns from."""
        batch = task.batch(step)
        mine, rows = len(batch["input_ids"]), int(batch["whole"][0]) if group.size > 1 else len(batch["input_ids"])
        seeds = {"row_seeds": row_seeds(task.seed, step, rows * group.rank // group.size, mine)} if task.by_row else {}
        own = split(batch | seeds, task.accumulate, group.size)
        if task.graph:
            own = [fill_up(part, task.predictions) for part in own]
        if device == "cuda":  # only pinned memory is copied while the device computes
            own = [{key: value.pin_memory() for key, value in part.items()} for part in own]
        return batch, rows, own

    if start and clock.is_over(start - 1):
        steps = range(0)
    else:
        steps = itertools.count(start) if task.max_minutes else range(start, task.steps)
    step = start - 1  # the last one, where none is left
    with bar(task.steps, f"{context.job.id} {name}", start, silent=not group.leads) as progress:
        for step, (batch, rows, own) in enumerate(speed.waiting(ahead(parts_of, steps)), start):
            place = clock.place(step)
            # A step's dropout depends on (seed, step) and on the process, not on the steps before it. A CPU generator reads the
            # lower 32 bits alone: the process must change them.
            torch.manual_seed((task.seed * 1_000_003 + step + group.rank * 2_654_435_761) % 2**63)
            task.prepare(place)
            for item, rate in zip(optimizer.param_groups, peaks, strict=True):
                item["lr"] = rate * task.rate(place)
            step_work.saves = group.leads and pace.is_due()
            losses, values = work.gradients(own, rows, place)
            *points, norm = values.tolist()  # the one moment a step waits for the device
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
            # After the last step too, so that a failure to evaluate costs no step; not where all of them are few.
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
    """What a step does on the device, all of it a function of tensors: nothing in here waits for their values."""

    task: Task
    optimizer: torch.optim.Optimizer
    shards: Shards
    device: str
    saves: bool = False  # whether this process asks for a state after the step

    def gradients(self, parts: list[Batch], rows: int, place: int) -> tuple[list[str], torch.Tensor]:
        """Add up the gradients of `parts` of a batch of `rows` rows, of all processes, and clip them.

        Returns the losses' names, and their values with the norm before clipping behind them: (losses + 1,), without gradient.
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
        if self.shards.group.size > 1:  # summed with the losses, so that all save at one step and no message is sent for it
            total[SAVES] = torch.full((), float(self.saves), device=self.device)
        values = torch.stack(list(total.values()))
        norm = self.shards.sum(values)
        nn.utils.clip_grads_with_norm_(self.shards.parameters, self.task.clip_norm, norm, foreach=True)
        return list(total), torch.cat([values, norm.reshape(1)])

    def update(self) -> None:
        """Take the step, and leave no gradient."""
        self.optimizer.step()
        self.shards.spread()
        self.optimizer.zero_grad(set_to_none=True)


def _passes(before: int, place: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, place]; every place where `every` is 0."""
    every = max(1, every)
    return place // every != before // every
