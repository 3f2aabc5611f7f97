"""What a distilled student costs, its teacher included: the budget of the same student from scratch. Arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Mapping

from mobilebert.config import Study
from mobilebert.modeling.cost import MASK_RATE, cost
from mobilebert.paper import Model
from mobilebert.training import schedule


def student_flops(study: Study, row: Model, student: Mapping, teacher: Mapping) -> float:
    """FLOPs of the teacher's pre-training, of the knowledge transfer and of the distillation of the student `row`.

    student, teacher: their architectures. A backward pass counts as two forward passes, of the layers that learn.
    """
    pretrain, transfer, distill = study.pretrain, study.transfer, study.distill
    total = _tokens(pretrain) * cost(teacher, pretrain.length).training_flops_per_token
    if row.strategy != "none":
        mine, theirs = (_forward(model, transfer.length) for model in (student, teacher))
        run, learn, guide = _depths(study, row, student["num_hidden_layers"])
        total += _tokens(transfer) * ((run + 2 * learn) * mine + guide * theirs)
    steps = distill.steps + (transfer.steps if row.strategy == "akt" else 0)
    return total + steps * distill.batch_size * distill.length * flops_per_token(student, teacher, distill.length)


def flops_per_token(student: Mapping, teacher: Mapping, length: int) -> float:
    """Of a step of distillation: the student forward and backward, the teacher forward with its logits."""
    logits = MASK_RATE * cost(teacher, length).mlm_flops_per_prediction
    return cost(student, length).training_flops_per_token + _forward(teacher, length) + logits


def scratch_steps(study: Study, row: Model, student: Mapping, teacher: Mapping, budget: str) -> int:
    """Steps of distillation's batches that the student gets from scratch: as many as `row` gets, or for as many FLOPs."""
    if budget == "steps":
        return study.distill.steps + (study.transfer.steps if row.strategy != "none" else 0)
    own = cost(student, study.distill.length).training_flops_per_token
    return round(student_flops(study, row, student, teacher) / (own * study.distill.batch_size * study.distill.length))


def _tokens(settings) -> int:
    return settings.steps * settings.batch_size * settings.length


def _forward(model: Mapping, length: int) -> float:
    """FLOPs of the encoder's forward pass, a token."""
    return cost(model, length).encoder_flops / length


def _depths(study: Study, row: Model, layers: int) -> tuple[float, float, float]:
    """Mean share of its layers that the student runs, that it goes back through, and that the teacher runs."""
    if row.strategy == "akt":
        return 0, 0, 0  # beside distillation, whose steps count both models whole
    if row.strategy == "jkt":
        return 1, 1, 1
    steps = study.transfer.steps
    run = sum(schedule.stage(step, steps, layers)[0] + 1 for step in range(steps)) / steps / layers
    whole = study.recipe == "released" and "fmt" in row.losses  # its statistics are of all the teacher's layers
    return run, run if study.transfer.lower_layers else 1 / layers, 1 if whole else run
