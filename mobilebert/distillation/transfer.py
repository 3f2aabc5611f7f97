"""Decide which layers knowledge transfer (paper section 3.5) trains, how fast and with which loss.

PKT teaches one layer after the other, each with a share of the steps; JKT teaches all at once; AKT
adds the layers' loss to distillation. All parameters outside the encoder are the teacher's and
stay fixed during PKT and JKT.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from mobilebert.distillation import losses
from mobilebert.distillation.teacher_layers import Guide, layers
from mobilebert.modeling.heads import MobileBertForPreTraining
from mobilebert.pretraining.objective import INPUTS
from mobilebert.study import schedule
from mobilebert.study.architecture import mismatch
from mobilebert.study.stage_config import LayerwiseConfig
from mobilebert.util.errors import UserError

LAYER = re.compile(r"mobilebert\.encoder\.layer\.(\d+)\.")


def layer_of(name: str) -> int:
    """Return the encoder layer of a parameter, from 0; -1 outside the encoder."""
    found = LAYER.match(name)
    return int(found.group(1)) if found else -1


@torch.no_grad()
def copy_outside_encoder(student: MobileBertForPreTraining, teacher: MobileBertForPreTraining) -> list[str]:
    """Copy embeddings, pooler and heads from the teacher, as the released code does.

    Return the names of the copied parameters. The embedding norm is not copied if one model has
    NoNorm and the other LayerNorm: the released code has different names for them.
    """
    source, copied = dict(teacher.named_parameters()), []
    same_norm = student.config.normalization_type == teacher.config.normalization_type
    for name, parameter in student.named_parameters():
        outside = layer_of(name) < 0 and name in source and source[name].shape == parameter.shape
        if outside and (
            same_norm or name not in ("mobilebert.embeddings.LayerNorm.weight", "mobilebert.embeddings.LayerNorm.bias")
        ):
            parameter.copy_(source[name])
            copied.append(name)
    return copied


@torch.no_grad()
def shuffle_weights(model: nn.Module, seed: int) -> None:
    """Permute the entries of every weight: the distribution stays, the knowledge goes.

    This is a control: what the teacher knows must matter.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


Share = Callable[[Callable[[], "Guide"]], "Guide"]


def _alone(make: Callable[[], Guide]) -> Guide:
    return make()


class Transfer:
    """The layers' loss of one strategy.

    config: a transfer job's configuration, or `DistillConfig.layerwise`. Raises UserError if the
    shapes of student and teacher do not fit its losses.
    """

    def __init__(self, student: MobileBertForPreTraining, teacher: MobileBertForPreTraining, config: LayerwiseConfig):
        if problem := mismatch(student.config.to_dict(), teacher.config.to_dict(), config.losses):
            raise UserError(problem)
        self.student, self.teacher, self.config = student, teacher, config
        self.recipe = config.recipe
        self.layers = student.config.num_hidden_layers
        self.factors = config.factors or losses.FACTORS[self.recipe]
        self.progressive = config.strategy == "pkt"

    def depth(self, step: int) -> tuple[int, range]:
        """Return the number of blocks to run at a step, and the layers taught."""
        if not self.progressive:
            return self.layers, range(self.layers)
        layer = schedule.stage(step, self.config.steps, self.layers)[0]
        return layer + 1, range(layer, layer + 1)

    def stage(self, step: int) -> int | None:
        """Return the layer that PKT teaches at a step, from 1; None for the other strategies."""
        return self.depth(step)[0] if self.progressive else None

    def prepare(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        """Return a function of the step that sets each layer's share of the learning rate.

        Parameters with share 0 get no gradient. Each group of the optimizer must hold parameters of
        one layer (`optim.make(..., group=layer_of)`).
        """
        groups = {id(parameter): layer_of(name) for name, parameter in self.student.named_parameters()}

        def prepare(step: int) -> None:
            taught = self.depth(step)[1]
            for group in optimizer.param_groups:
                layer = groups[id(group["params"][0])]
                if layer in taught:
                    group["rate"] = 1.0
                else:
                    below = 0 <= layer < taught.start
                    group["rate"] = self.config.lower_layers if below else 0.0
                for parameter in group["params"]:
                    parameter.requires_grad_(group["rate"] > 0)

        return prepare

    def rate(self, step: int) -> float:
        """Return the multiplier of the peak rate at a step.

        PKT follows the released curve within each stage, times 3 in the released recipe. JKT warms
        up and decays linearly.
        """
        steps = self.config.steps
        if self.progressive:
            _, within, length = schedule.stage(step, steps, self.layers)
            return (3.0 if self.recipe == "released" else 1.0) * schedule.stage_curve(within, length)
        return schedule.linear(step, steps, self.config.warmup_steps)

    def loss(self, batch: dict[str, torch.Tensor], step: int, share: Share = _alone) -> dict[str, torch.Tensor]:
        """Run both models as deep as the step needs; return the mean loss of the taught layers."""
        return {"loss": self.loss_of(batch, *self.depth(step), share)}

    def loss_of(self, batch: dict[str, torch.Tensor], depth: int, taught: range, share: Share = _alone) -> torch.Tensor:
        """Return the mean loss of the layers `taught`, with both models run `depth` blocks deep.

        share: calls its argument to build the teacher's guide, or returns the guide that another
        student built for the same batch and layers.
        """
        maps = list(taught) if "at" in self.config.losses else []
        theirs = share(lambda: Guide(self.teacher, batch, depth, taught, self.recipe)).layers(
            bool(maps), self.averages_all_layers
        )
        inputs = {key: batch[key] for key in INPUTS if key in batch}
        return self.compare(layers(self.student, inputs, depth, taught, maps), theirs, batch)

    @property
    def averages_all_layers(self) -> bool:
        """Return whether a layer is compared with the statistics of all the teacher's layers.

        The released TF1 code does so: by a wrong variable name it averages over a list instead of
        using the list's item.
        """
        return self.recipe == "released" and "fmt" in self.config.losses

    def compare(self, student: dict[int, dict], teacher: dict[int, dict], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of the layers that `student` holds, as `layers` returns them.

        The released code divides by the number of layers even in a stage of PKT, which has one
        loss. A constant factor does not change LAMB's step, but it changes the clipping at norm 1.
        """
        mask = batch.get("attention_mask")
        total = sum(
            losses.layer(student[index], teacher[index], self.recipe, self.config.losses, self.factors, mask) for index in student
        )
        assert isinstance(total, torch.Tensor)
        if self.recipe == "released":
            return total / self.layers
        return total / len(student) * batch.get("token_weight", 1.0)  # a micro-batch's share of the real tokens
