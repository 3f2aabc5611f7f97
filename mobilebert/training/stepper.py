"""Do a step of training: its micro-batches, their gradients, the update."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn

from mobilebert.training.batches import Batch, fill_up, split
from mobilebert.training.distributed.sharding import Shards
from mobilebert.training.dropout import RowDropout, row_seeds
from mobilebert.training.plan import Losses, TrainingPlan

SAVES = "saves"  # sent with the losses if there are several processes: above 0 if one of them asks to save


@dataclass
class Stepper:
    """The work of a step, kernel by kernel; `cuda_graphs.Graphs` replays the same work."""

    plan: TrainingPlan
    optimizer: torch.optim.Optimizer
    shards: Shards
    device: str

    def prepare(self, step: int) -> tuple[Batch, int, list[Batch]]:
        """Return this process's rows of a step's batch, the number of rows of all processes, and
        this process's micro-batches.
        """
        group, batch = self.shards.group, self.plan.batch(step)
        mine, rows = len(batch["input_ids"]), int(batch["whole"][0]) if group.size > 1 else len(batch["input_ids"])
        seeds = {"row_seeds": row_seeds(self.plan.seed, step, rows * group.rank // group.size, mine)} if self.plan.by_row else {}
        own = split(batch | seeds, self.plan.accumulate, group.size)
        if self.plan.graph:
            own = [fill_up(part, self.plan.predictions) for part in own]
        if self.device == "cuda":  # only pinned memory can be copied while the device computes
            own = [{key: value.pin_memory() for key, value in part.items()} for part in own]
        return batch, rows, own

    def gradients(self, parts: list[Batch], rows: int, place: int, saves: bool = False) -> tuple[list[str], torch.Tensor]:
        """Sum the gradients of the micro-batches `parts` and of all processes, and clip them.

        rows: number of rows in the whole batch, over all processes.
        saves: whether this process asks to save after the step.

        This is a function of tensors that never waits for their values. It returns the losses'
        names, and without gradient a tensor (losses + 1,): their values, then the gradient norm
        before clipping.
        """
        total: Losses = {}
        for part in parts:
            drawn = RowDropout(part["row_seeds"]) if self.plan.by_row else contextlib.nullcontext()
            part = {key: value.to(self.device, non_blocking=True) for key, value in part.items()}
            share = len(part["input_ids"]) / rows
            with torch.autocast(self.device, torch.bfloat16, enabled=self.plan.precision == "bf16"), drawn:
                losses = self.plan.loss(part, place)
            (losses["loss"] * share if share < 1 else losses["loss"]).backward()
            for key, value in losses.items():
                total[key] = total.get(key, 0) + value.detach().float() * share
        if self.shards.group.size > 1:  # summed with the losses: all processes save at the same step, without a further message
            total[SAVES] = torch.full((), float(saves), device=self.device)
        values = torch.stack(list(total.values()))
        norm = self.shards.sum(values)
        nn.utils.clip_grads_with_norm_(self.shards.parameters, self.plan.clip_norm, norm, foreach=True)
        return list(total), torch.cat([values, norm.reshape(1)])

    def update(self) -> None:
        """Update the parameters in all processes, and drop the gradients."""
        self.optimizer.step()
        self.shards.spread()
        self.optimizer.zero_grad(set_to_none=True)
