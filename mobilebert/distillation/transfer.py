"""Knowledge transfer (paper section 3.5): which layers learn at a step, how fast, and the layers' loss.

PKT teaches one layer after the other, each with a share of the steps; JKT teaches all at once; AKT adds the layers' loss to
distillation. Whatever is outside the encoder comes from the teacher and does not move during PKT and JKT.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from mobilebert.distillation import losses
from mobilebert.errors import UserError
from mobilebert.training import schedule
from mobilebert.training.pretraining import INPUTS

LAYER = re.compile(r"mobilebert\.encoder\.layer\.(\d+)\.")


def layer_of(name: str) -> int:
    """Encoder layer of a parameter, from 0; -1 outside the encoder."""
    found = LAYER.match(name)
    return int(found.group(1)) if found else -1


def check_pair(student: nn.Module, teacher: nn.Module) -> None:
    """Raises UserError when student and teacher cannot be compared layer by layer."""
    for field in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        mine, theirs = getattr(student.config, field), getattr(teacher.config, field)
        if mine != theirs:
            raise UserError(f"{field}: the student has {mine}, the teacher {theirs}; knowledge transfer needs them equal")


@torch.no_grad()
def copy_outside_encoder(student: nn.Module, teacher: nn.Module) -> list[str]:
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


class Transfer:
    """The layers' loss of one strategy.

    config: a transfer job's configuration (strategy, losses, factors, lower_layers, recipe, steps).
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, config: dict):
        check_pair(student, teacher)
        self.student, self.teacher, self.config = student, teacher, config
        self.recipe = config["recipe"]
        self.layers = student.config.num_hidden_layers
        self.factors = tuple(config["factors"] or losses.FACTORS[self.recipe])
        self.progressive = config["strategy"] == "pkt"

    def depth(self, step: int) -> tuple[int, range]:
        """Number of blocks to run at a step, and the layers taught."""
        if not self.progressive:
            return self.layers, range(self.layers)
        layer = schedule.stage(step, self.config["steps"], self.layers)[0]
        return layer + 1, range(layer, layer + 1)

    def prepare(self, optimizer: torch.optim.Optimizer):
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
                    group["rate"] = self.config["lower_layers"] if below else 0.0
                for parameter in group["params"]:
                    parameter.requires_grad_(group["rate"] > 0)

        return prepare

    def rate(self, step: int) -> float:
        """Multiplier of the peak rate: the released curve, 3x within each stage for PKT; linear for JKT."""
        steps = self.config["steps"]
        if self.progressive:
            _, within, length = schedule.stage(step, steps, self.layers)
            return (3.0 if self.recipe == "released" else 1.0) * schedule.stage_curve(within, length)
        return schedule.linear(step, steps, self.config["warmup_steps"])

    def loss(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        """Run both models as deep as the step needs; the mean of the taught layers' losses.

        The released code divides a stage's loss by the number of layers: LAMB's step does not see a constant factor, its clipping
        at norm 1 does.
        """
        depth, taught = self.depth(step)
        inputs = {key: batch[key] for key in INPUTS if key in batch}
        wanted = {
            "output_hidden_states": True,
            "attention_layers": list(taught) if "at" in self.config["losses"] else [],
        }
        slip = self.recipe == "released" and "fmt" in self.config["losses"]
        with torch.no_grad():
            deep = self.layers if slip else depth
            guide = self.teacher.mobilebert(**inputs, num_layers=deep, **wanted)
        out = self.student.mobilebert(**inputs, num_layers=depth, **wanted)
        return {"loss": self.compare(out.hidden_states, out.attentions, guide.hidden_states, guide.attentions, taught, batch)}

    def compare(self, states, attentions, guide_states, guide_attentions, taught, batch) -> torch.Tensor:
        """Mean loss of the taught layers from both models' hidden states (embeddings first) and attention maps."""
        mask = batch.get("attention_mask")
        every = torch.stack(guide_states) if self.recipe == "released" else None
        total = states[-1].new_zeros(())
        for layer in taught:
            student, teacher = {"features": states[layer + 1]}, {"features": guide_states[layer + 1]}
            if every is not None:
                teacher["statistics"] = every
            if "at" in self.config["losses"]:
                student["attention"], teacher["attention"] = attentions[layer], guide_attentions[layer]
            total = total + losses.layer(student, teacher, self.recipe, self.config["losses"], self.factors, mask)
        return total / len(taught)
