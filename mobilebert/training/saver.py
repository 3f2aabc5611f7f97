"""Continue a training from its saved state, and save it again."""

from __future__ import annotations

import torch
from torch import nn

from mobilebert.jobs.context import JobContext
from mobilebert.training import checkpoint
from mobilebert.training.distributed.sharding import Shards
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import UserError


class Saver:
    """The saved state of one training, in the job's state folder."""

    def __init__(
        self,
        context: JobContext,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: TrainingPlan,
        name: str,
        shards: Shards,
    ):
        self.context, self.model, self.optimizer, self.plan = context, model, optimizer, plan
        self.name, self.shards, self.group = name, shards, shards.group
        self.path, self.fingerprint = context.state / f"{name}.safetensors", f"{context.job.fingerprint}:{name}"
        if model.training and not plan.by_row:  # dropout then depends on how the batch is split
            self.fingerprint += f":{self.group.size}x{plan.accumulate}"
        self.saved, self.pace = 0, checkpoint.Pace()

    def resume(self) -> tuple[int, float]:
        """Load the saved state, if there is one; return the steps done and the seconds they took.

        Raises UserError if `checkpoint.load` refuses the state, or if the processes do not begin
        with the same weights at the same step.
        """
        self.saved, seconds = checkpoint.load(self.path, self.model, self.optimizer, self.fingerprint)
        self.shards.drop(self.optimizer)
        if self.group.size > 1 and not self.group.same(self.saved, checkpoint.weights_crc32(self.model)):
            raise UserError(
                f"{self.path}: the processes begin at different steps or with different weights; "
                "they do not see the same results folder, or initialised the model differently"
            )
        if self.group.leads:
            self.context.resume(self.name, self.saved)
        self.pace = checkpoint.Pace()
        return self.saved, seconds

    def wants_save(self) -> bool:
        """Return whether it is time for another save; only the first process asks."""
        return self.group.leads and self.pace.is_due()

    def is_due(self, step: int, is_last: bool) -> bool:
        """Return whether the plan asks for a save after `step`.

        It asks every `checkpoint_every` steps. It also asks after the last step, so that a failed
        evaluation loses no step, unless the training had at most `checkpoint_every` steps and
        `save_last` is off.
        """
        every = self.plan.checkpoint_every
        return (self.plan.save_last or step >= every) if is_last else (step + 1) % every == 0

    def save(self, steps: int, seconds: float) -> None:
        """Save the state after `steps` steps."""
        with self.pace.saving(), self.shards.gathered(self.optimizer):
            if self.group.leads:
                checkpoint.save(self.path, self.model, self.optimizer, steps, self.fingerprint, self.plan.steps, seconds)
        self.saved = steps

    def last_good(self) -> str:
        """Return which state is saved, for an error's text."""
        return f"{self.saved} steps, {self.path}" if self.saved else "none"
