"""Train a model: teacher, transfer, distillation and fine-tuning all use this one loop.

They differ only in batch, loss and rate, which a `TrainingPlan` gives.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mobilebert.jobs.context import JobContext
from mobilebert.training.accelerated.cuda_graphs import Graphs
from mobilebert.training.batches import ahead, digest
from mobilebert.training.clock import Clock
from mobilebert.training.device import compile_blocks
from mobilebert.training.distributed.processes import world
from mobilebert.training.distributed.sharding import Shards
from mobilebert.training.plan import TrainingPlan
from mobilebert.training.saver import Saver
from mobilebert.training.stepper import SAVES, Stepper
from mobilebert.util.errors import Diverged, UserError
from mobilebert.util.progress import Speed, bar, peak_flops

CURVE_POINTS, EVALUATIONS = 200, 10  # for each training: enough for a plot, few enough to store and to compute


def train(
    context: JobContext,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    name: str = "train",
    device: str = "cpu",
) -> None:
    """Train to the end, from the last saved state if there is one.

    Dropout is on if the caller left `model` in training mode. Raises Diverged, naming step, batch
    and last good state, if the loss or the gradient norm is not finite. Raises UserError if the
    processes do not begin with the same weights at the same step, or if several of them are to
    record graphs.
    """
    group = world()
    if plan.graph and group.size > 1:
        raise UserError(f"graph: true works in one process only, but torchrun started {group.size}; set graph: false")
    shards = Shards([p for item in optimizer.param_groups for p in item["params"]], group)
    saver = Saver(context, model, optimizer, plan, name, shards)
    start, seconds = saver.resume()
    if plan.compile:
        compile_blocks(model)
    peaks = [item["lr"] for item in optimizer.param_groups]
    eager = Stepper(plan, optimizer, shards, device)
    stepper = Graphs(eager) if plan.graph else eager
    peak = peak_flops(device)
    speed = Speed(peak and peak * group.size)
    clock = Clock(plan, seconds, speed, group)
    batches = speed.waiting(ahead(stepper.prepare, clock.steps_from(start)))
    before = clock.place(start - 1) if start else -1
    step = start - 1  # stays so if no step is left
    with bar(plan.steps, f"{context.job.id} {name}", start, silent=not group.leads) as progress:
        for step, (batch, rows, parts) in enumerate(batches, start):
            place = clock.place(step)
            _seed(plan.seed, step, group.rank)
            plan.prepare(place)
            _set_rates(optimizer, peaks, plan.rate(place))
            wants_save = saver.wants_save()
            names, values = stepper.gradients(parts, rows, place, wants_save)
            *points, norm = values.tolist()  # only here does a step wait for the device
            points = dict(zip(names, points, strict=True))
            wants_save = bool(points.pop(SAVES, wants_save))
            if not (math.isfinite(points["loss"]) and math.isfinite(norm)):
                raise Diverged(
                    f"loss {points['loss']}, gradient norm {norm} at step {step} of {plan.steps}, batch {digest(batch)}; "
                    f"last good state: {saver.last_good()}"
                )
            stepper.update()
            length = batch["input_ids"].shape[1]  # padding counts
            flops = None if plan.flops_per_token is None else rows * length * plan.flops_per_token(place, length)
            speed.step(rows * length, flops, plan.stage(place))
            is_last = clock.is_over(step)
            progress.total = clock.steps(step + 1)
            progress.update()
            if group.leads:
                if is_last or _passes(before, place, plan.steps // CURVE_POINTS):
                    context.log(step, **{f"{name}_{key}": value for key, value in points.items()})
                    progress.set_postfix_str(f"loss={points['loss']:.3f}, {speed}", refresh=False)
                if plan.evaluate and (is_last or _passes(before, place, plan.steps // EVALUATIONS)):
                    context.log(step, **{f"{name}_{key}": value for key, value in plan.evaluate().items()})
            if wants_save or saver.is_due(step, is_last):
                saver.save(step + 1, clock.seconds)
            before = place
            if is_last:
                break
    _set_rates(optimizer, peaks, 1.0)
    if speed.steps:
        context.details |= {f"{name}_{key}": value for key, value in speed.figures().items()}
    context.details |= {f"{name}_steps": step + 1, f"{name}_split": {"processes": group.size, "accumulate": plan.accumulate}}


def _seed(seed: int, step: int, rank: int) -> None:
    """Set the generator of a step's dropout: it depends on seed, step and process alone.

    A CPU generator reads only the lower 32 bits: the process number must change those.
    """
    torch.manual_seed((seed * 1_000_003 + step + rank * 2_654_435_761) % 2**63)


def _set_rates(optimizer: torch.optim.Optimizer, peaks: list[float], factor: float) -> None:
    for item, peak in zip(optimizer.param_groups, peaks, strict=True):
        item["lr"] = peak * factor


def _passes(before: int, place: int, every: int) -> bool:
    """Return whether a multiple of `every`, or of 1 if it is 0, lies in (before, place]."""
    every = max(1, every)
    return place // every != before // every
