"""The one training loop: teacher, transfer, distillation and fine-tuning differ only in batch, loss and rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mobilebert.progress import bar
from mobilebert.records import Diverged, Run
from mobilebert.training import checkpoint

Losses = dict[str, torch.Tensor]  # "loss" is what is minimised, the others are its parts


@dataclass
class Task:
    """What a loop does at a step. Every callable is a function of the step alone, so a resumed run is the same run."""

    steps: int
    batch: Callable[[int], dict[str, torch.Tensor]]
    loss: Callable[[dict[str, torch.Tensor], int], Losses]
    rate: Callable[[int], float]  # multiplies the optimizer's learning rate
    seed: int
    prepare: Callable[[int], None] = lambda step: None  # before a step: which parameters learn
    clip_norm: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 1000


def train(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, name: str = "train", device: str = "cpu"
) -> None:
    """Train to the end, from the last saved state if there is one; dropout is on if the caller left `model` in training mode.

    Raises Diverged, with the step and the last good state named, when a loss is not finite.
    """
    path = run.state / f"{name}.safetensors"
    fingerprint = f"{run.job.fingerprint}:{name}"
    start = checkpoint.load(path, model, optimizer, fingerprint)
    run.resume(name, start)
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    every = max(1, task.steps // 200)  # points of a curve: enough to draw, few enough to keep
    tokens, clock = 0, time.monotonic()
    with bar(task.steps, f"{run.job.id} {name}", start) as progress:
        for step in range(start, task.steps):
            # A step's dropout depends on (seed, step), not on the steps before it.
            torch.manual_seed((task.seed * 1_000_003 + step) % 2**63)
            task.prepare(step)
            batch = {key: value.to(device, non_blocking=True) for key, value in task.batch(step).items()}
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * task.rate(step)
            with torch.autocast(device, torch.bfloat16, enabled=task.precision == "bf16"):
                losses = task.loss(batch, step)
            losses["loss"].backward()
            trained = [p for p in parameters if p.grad is not None]
            norm = nn.utils.clip_grad_norm_(trained, task.clip_norm, foreach=True)
            value = losses["loss"].item()
            if not (math.isfinite(value) and math.isfinite(norm.item())):
                kept = step // task.checkpoint_every * task.checkpoint_every
                raise Diverged(
                    f"loss {value}, gradient norm {norm.item()} at step {step} of {task.steps}; last good state: {kept}"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tokens += batch["input_ids"].numel()
            progress.update()
            if step % every == 0 or step == task.steps - 1:
                points = {key: item.item() for key, item in losses.items()}
                run.log(step, **{f"{name}_{key}": item for key, item in points.items()})
                progress.set_postfix(loss=f"{value:.3f}", tokens=f"{tokens / (time.monotonic() - clock):.0f}/s", refresh=False)
            if (step + 1) % task.checkpoint_every == 0 and step + 1 < task.steps:
                checkpoint.save(path, model, optimizer, step + 1, fingerprint)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak
    if tokens:
        run.details[f"{name}_tokens_per_second"] = tokens / (time.monotonic() - clock)
    run.details[f"{name}_steps"] = task.steps
