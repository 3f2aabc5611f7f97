"""What a distilled student costs, its teacher included: the budget of the same student from scratch. Arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Mapping

from mobilebert.modeling.cost import MASK_RATE, cost
from mobilebert.paper import Model
from mobilebert.study import schedule
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import LayerwiseConfig


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


def transfer_flops_per_token(config: LayerwiseConfig, student: Mapping, teacher: Mapping, step: int, length: int) -> float:
    """Of a step of knowledge transfer: the student as deep as the step runs it, backward through the blocks that learn, and the
    teacher forward as deep as it is asked. No heads; the embeddings do not learn. Attention maps add no product.

    config: a transfer job's (see `depths`).
    """
    run, learn, guide = depths(config, step, student["num_hidden_layers"])
    mine, embedded = (_forward({**student, "num_hidden_layers": count}, length) for count in (run, 0))
    return mine + 2 * learn / run * (mine - embedded) + _forward({**teacher, "num_hidden_layers": guide}, length)


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
    transfer = study.transfer
    config = LayerwiseConfig(
        recipe=study.recipe,
        strategy=row.strategy,
        losses=row.losses,
        factors=transfer.factors,
        lower_layers=transfer.lower_layers,
        steps=transfer.steps,
        warmup_steps=transfer.warmup_steps,
    )
    totals, step = [0, 0, 0], 0
    while step < transfer.steps:  # from stage to stage: the steps of one are alike
        length = schedule.stage(step, transfer.steps, layers)[2]
        totals = [total + length * depth for total, depth in zip(totals, depths(config, step, layers), strict=True)]
        step += length
    run, learn, guide = (total / transfer.steps / layers for total in totals)
    return run, learn, guide


def depths(config: LayerwiseConfig, step: int, layers: int) -> tuple[int, int, int]:
    """Of `layers` blocks those that the student runs at a step of PKT or JKT, those that it goes back through, and those that the
    teacher runs.

    config: a transfer job's, or alike.
    """
    if config.strategy == "jkt":
        return layers, layers, layers
    run = schedule.stage(step, config.steps, layers)[0] + 1
    whole = config.recipe == "released" and "fmt" in config.losses  # its statistics are of all the teacher's layers
    return run, run if config.lower_layers else 1, layers if whole else run
