"""Count a student's FLOPs, its teacher's included, to train it from scratch for as many.

This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from mobilebert.modeling.cost import MASK_RATE, cost
from mobilebert.paper import Model
from mobilebert.study import schedule
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import LayerwiseConfig, layerwise_config


def student_flops(study: Study, row: Model, student: Mapping, teacher: Mapping) -> float:
    """Return the FLOPs of the teacher's pre-training, the knowledge transfer and the distillation.

    student, teacher: architectures; the student is that of `row`. A backward pass counts as two
    forward passes through the layers that learn.
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
    """Return FLOPs per token of distillation: student forward and backward, teacher with logits."""
    logits = MASK_RATE * cost(teacher, length).mlm_flops_per_prediction
    return cost(student, length).training_flops_per_token + _forward(teacher, length) + logits


def transfer_flops_per_token(config: LayerwiseConfig, student: Mapping, teacher: Mapping, step: int, length: int) -> float:
    """Return FLOPs per token of a step of knowledge transfer, over the blocks that `depths` names.

    Student forward, backward through the blocks that learn, teacher forward. No head runs, the
    embeddings do not learn, attention maps add no matrix product. config: a transfer job's.
    """
    run, learn, guide = depths(config, step, student["num_hidden_layers"])
    mine, embedded = (_forward({**student, "num_hidden_layers": count}, length) for count in (run, 0))
    return mine + 2 * learn / run * (mine - embedded) + _forward({**teacher, "num_hidden_layers": guide}, length)


def scratch_steps(study: Study, row: Model, student: Mapping, teacher: Mapping, budget: str) -> int:
    """Return the student's steps from scratch, in distillation's batches: as many as `row` gets, or
    for as many FLOPs (budget "compute")."""
    if budget == "steps":
        return study.distill.steps + (study.transfer.steps if row.strategy != "none" else 0)
    own = cost(student, study.distill.length).training_flops_per_token
    return round(student_flops(study, row, student, teacher) / (own * study.distill.batch_size * study.distill.length))


def _tokens(settings) -> int:
    return settings.steps * settings.batch_size * settings.length


def _forward(model: Mapping, length: int) -> float:
    """Return the FLOPs of the encoder's forward pass for one token."""
    return cost(model, length).encoder_flops / length


def _depths(study: Study, row: Model, layers: int) -> tuple[float, float, float]:
    """Return the mean shares of layers that the student runs, that learn, that the teacher runs."""
    if row.strategy == "akt":
        return 0, 0, 0  # the transfer runs inside distillation, whose steps count both models whole
    transfer = study.transfer
    config = layerwise_config(study.recipe, row.strategy, row.losses, transfer)
    totals, step = [0, 0, 0], 0
    while step < transfer.steps:  # one turn for each stage: all its steps have the same depths
        length = schedule.stage(step, transfer.steps, layers)[2]
        totals = [total + length * depth for total, depth in zip(totals, depths(config, step, layers), strict=True)]
        step += length
    run, learn, guide = (total / transfer.steps / layers for total in totals)
    return run, learn, guide


def depths(config: LayerwiseConfig, step: int, layers: int) -> tuple[int, int, int]:
    """Return how many of `layers` blocks the student runs at a step of PKT or JKT, how many learn,
    and how many the teacher runs.

    config: a transfer job's, or one with the same keys.
    """
    if config.strategy == "jkt":
        return layers, layers, layers
    run = schedule.stage(step, config.steps, layers)[0] + 1
    whole = config.recipe == "released" and "fmt" in config.losses  # its loss uses statistics of all teacher layers
    return run, run if config.lower_layers else 1, layers if whole else run
