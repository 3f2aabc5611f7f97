"""Knowledge transfer (paper section 3.5): which layers learn at a step, how fast, and the layers' loss.

PKT teaches one layer after the other, each with a share of the steps; JKT teaches all at once; AKT adds the layers' loss to
distillation. Whatever is outside the encoder comes from the teacher and does not move during PKT and JKT.
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
    """Encoder layer of a parameter, from 0; -1 outside the encoder."""
    found = LAYER.match(name)
    return int(found.group(1)) if found else -1


@torch.no_grad()
def copy_outside_encoder(student: MobileBertForPreTraining, teacher: MobileBertForPreTraining) -> list[str]:
    """Copy embeddings, pooler and heads from the teacher, as the released code does; returns the parameters copied.

    The embedding norm stays out where one model has NoNorm and the other LayerNorm: the released code names them apart.
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
    """Permute the entries of every weight: same distribution, nothing learnt. A control (what the teacher knows must matter)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


Share = Callable[[Callable[[], "Guide"]], "Guide"]


def _alone(make: Callable[[], Guide]) -> Guide:
    return make()


class Transfer:
    """The layers' loss of one strategy.

    config: a transfer job's configuration, or `DistillConfig.layerwise`.
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
        """Number of blocks to run at a step, and the layers taught."""
        if not self.progressive:
            return self.layers, range(self.layers)
        layer = schedule.stage(step, self.config.steps, self.layers)[0]
        return layer + 1, range(layer, layer + 1)

    def stage(self, step: int) -> int | None:
        """The layer that PKT teaches at a step, from 1; None for the other strategies, whose steps are all alike."""
        return self.depth(step)[0] if self.progressive else None

    def prepare(self, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        """Step -> None: gives each layer its share of the rate; what does not learn needs no gradient.

        The optimizer's groups hold parameters of one layer each (`optim.make(..., group=layer_of)`).
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
        """Multiplier of the peak rate: the released curve, 3x within each stage for PKT; linear for JKT."""
        steps = self.config.steps
        if self.progressive:
            _, within, length = schedule.stage(step, steps, self.layers)
            return (3.0 if self.recipe == "released" else 1.0) * schedule.stage_curve(within, length)
        return schedule.linear(step, steps, self.config.warmup_steps)

    def loss(self, batch: dict[str, torch.Tensor], step: int, share: Share = _alone) -> dict[str, torch.Tensor]:
        """Run both models as deep as the step needs; the mean of the taught layers' losses."""
        return {"loss": self.loss_of(batch, *self.depth(step), share)}

    def loss_of(self, batch: dict[str, torch.Tensor], depth: int, taught: range, share: Share = _alone) -> torch.Tensor:
        """Mean loss of the layers `taught`, of models run `depth` blocks deep.

        share: makes the teacher's guide, or gives that of another student of the same teacher, batch and layers.
        """
        maps = list(taught) if "at" in self.config.losses else []
        theirs = share(lambda: Guide(self.teacher, batch, depth, taught, self.recipe)).layers(bool(maps), self.slips)
        inputs = {key: batch[key] for key in INPUTS if key in batch}
        return self.compare(layers(self.student, inputs, depth, taught, maps), theirs, batch)

    @property
    def slips(self) -> bool:
        """Whether a layer is compared with statistics of all the teacher's layers: the released TF1 code averages over a list
        where it means the list's item, a slip of a variable name."""
        return self.recipe == "released" and "fmt" in self.config.losses

    def compare(self, student: dict[int, dict], teacher: dict[int, dict], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of the layers that `student` holds, as `layers` returns them.

        The released code divides a stage's one loss by the number of layers too: LAMB's step does not see a constant factor, its
        clipping at norm 1 does.
        """
        mask = batch.get("attention_mask")
        total = sum(
            losses.layer(student[index], teacher[index], self.recipe, self.config.losses, self.factors, mask) for index in student
        )
        assert isinstance(total, torch.Tensor)
        if self.recipe == "released":
            return total / self.layers
        return total / len(student) * batch.get("token_weight", 1.0)  # of a part of a batch: its share of the real tokens

    @staticmethod
    def with_statistics(teacher: dict[int, dict], found: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[int, dict]:
        """Give every layer the means and variances, (L + 1, B, T) each, of the teacher's embeddings and all its layers."""
        statistics = tuple(torch.stack(one) for one in zip(*found, strict=True))
        return {index: layer | {"statistics": statistics} for index, layer in teacher.items()}
