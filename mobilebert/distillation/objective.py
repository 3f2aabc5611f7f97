"""Compute the loss of pre-training distillation; build its student and its teacher."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from mobilebert.distillation import losses
from mobilebert.distillation.teacher_layers import by_layer, with_statistics
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, shuffle_weights
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.heads import MobileBertForPreTraining
from mobilebert.pretraining import objective
from mobilebert.study.graph import final_job
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import DistillConfig, StudentConfig


def schedule_labels(study: Study, config: DistillConfig) -> list[str]:
    """Return the labels of distillation's schedule.

    AKT runs the transfer's steps in this job, so it gets the labels of the transfer's schedule too.
    """
    return study.schedule_labels("distill") + (study.schedule_labels("transfer") if config.transfer else [])


def new_student(context: JobContext, teacher: MobileBertForPreTraining, device: str) -> MobileBertForPreTraining:
    """Return the student that transfer trained, or a new one."""
    config, transferred = context.settings(DistillConfig), f"transfer/{context.job.name}"
    if transferred in context.job.inputs:
        return cast(MobileBertForPreTraining, objective.input_model(context, transferred).to(device))
    torch.manual_seed(config.seed)
    student = cast(MobileBertForPreTraining, objective.new_model(config.architecture).to(device))
    if config.control != "fresh-student":
        copy_outside_encoder(student, teacher)
    return student


def wanted(transfer: Transfer | None) -> dict:
    """Return the options that make a model return all hidden states and attentions, for AKT."""
    if not transfer:
        return {}
    maps = list(range(transfer.layers)) if "at" in transfer.config.losses else []
    return {"output_hidden_states": True, "attention_layers": maps}


@torch.no_grad()
def teacher_guide(
    teacher: MobileBertForPreTraining, batch: dict, config: DistillConfig, transfer: Transfer | None
) -> tuple[torch.Tensor, dict[int, dict]]:
    """Return the teacher's masked-LM logits (N, V), and for AKT its layers for `Transfer.compare`.

    The logits are computed at the masked positions alone. The NSP head does not run.
    """
    inputs = {key: batch[key] for key in objective.INPUTS if key in batch}
    out = teacher.mobilebert(**inputs, **wanted(transfer))
    logits = soft_logits(teacher, out.last_hidden_state, batch["masked_positions"], config.temperature)
    if not transfer:
        return logits, {}
    layers = by_layer(out.hidden_states, out.attentions, range(transfer.layers))
    if transfer.averages_all_layers:
        layers = with_statistics(layers, [losses.statistics(states) for states in out.hidden_states])
    return logits, layers


def distillation_loss(
    student: nn.Module, theirs: tuple, batch: dict, config: DistillConfig, transfer: Transfer | None
) -> dict[str, torch.Tensor]:
    """Return alpha * MLM + (1 - alpha) * KD + NSP (paper section 3.4), and each term.

    AKT adds the mean loss of the layers. theirs: from `teacher_guide`.
    """
    logits, layers = theirs
    out = objective.heads(student, batch, **wanted(transfer))
    released = config.recipe == "released"
    labels, real = batch["masked_labels"], batch.get("masked_real")
    mixed, mlm, kd = losses.pretraining_distillation(out["mlm"], logits, labels, config.alpha, released, real)
    weight = batch.get("masked_weight", 1.0)  # a micro-batch's share of the masked positions
    parts = {"mlm": mlm * weight, "kd": kd * weight, "nsp": losses.next_sentence(out["nsp"], batch["next_sentence_label"])}
    parts = {"loss": mixed * weight + parts["nsp"], **parts}
    if transfer:
        mine = by_layer(out["states"], out["attentions"], range(transfer.layers))
        parts["layers"] = transfer.compare(mine, layers, batch)
        parts["loss"] = parts["loss"] + parts["layers"]
    return parts


def soft_logits(
    teacher: MobileBertForPreTraining, states: torch.Tensor, positions: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return masked-LM logits (N, V) at `positions` of the flattened `states` (B, T, C).

    The released code's `distill_temperature` multiplies the input of the head's transform, not the
    logits. A temperature of 1 changes nothing.
    """
    masked = states.flatten(0, 1).index_select(0, positions)
    return teacher.cls.predictions(masked if temperature == 1 else masked * temperature)


def teacher_of(context: JobContext, study: Study, device: str) -> MobileBertForPreTraining:
    """Return the frozen teacher; the control "shuffled-teacher" shuffles its weights."""
    model = study.models[context.job.name].teacher
    final = model and final_job(study, model)
    assert final
    teacher = cast(MobileBertForPreTraining, objective.input_model(context, final).to(device).eval())
    config = context.settings(StudentConfig)
    if config.control == "shuffled-teacher":
        shuffle_weights(teacher, config.seed)
    return teacher.requires_grad_(False)
