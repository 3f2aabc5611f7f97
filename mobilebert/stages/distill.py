"""Pre-training distillation: masked LM, the teacher's soft labels and NSP; for AKT the layers' losses beside them."""

from __future__ import annotations

from dataclasses import replace

import torch

from mobilebert.config import Study
from mobilebert.distillation import losses
from mobilebert.distillation.budget import flops_per_token
from mobilebert.distillation.transfer import Transfer, by_layer, copy_outside_encoder
from mobilebert.records import Run
from mobilebert.stages.pretrain import corpus_of, make_optimizer, make_task
from mobilebert.stages.transfer import teacher_of
from mobilebert.training import pretraining
from mobilebert.training.device import device_of
from mobilebert.training.loop import train


def run(run: Run, study: Study) -> None:
    config = run.job.config
    device = device_of(study)
    corpus = corpus_of(run)
    teacher = teacher_of(run, study, device)
    transferred = f"transfer/{run.job.name}"
    if transferred in run.job.inputs:
        student = pretraining.input_model(run, transferred).to(device)
    else:
        torch.manual_seed(config["seed"])
        student = pretraining.new_model(config["architecture"]).to(device)
        if config["control"] != "fresh-student":
            copy_outside_encoder(student, teacher)
    transfer = None
    if config["transfer"]:
        transfer = Transfer(student, teacher, {**config["transfer"], "recipe": config["recipe"]})
    task = replace(
        make_task(run, study, student, corpus),
        loss=lambda batch, step: loss(student, teacher, batch, config, transfer),
        evaluate=lambda: pretraining.heldout_point(student, corpus, config["length"], device),
        flops_per_token=flops_per_token(config["architecture"], teacher.config.to_dict(), config["length"]),
    )
    train(run, student.eval(), make_optimizer(student, config), task, "train", device)
    pretraining.heldout(run, student, corpus, config["length"], device)
    pretraining.save_model(run, student)
    run.label(study.labels("distill") + study.schedule_labels("distill"), *run.job.inputs[1:])


def loss(student, teacher, batch: dict, config: dict, transfer: Transfer | None) -> dict[str, torch.Tensor]:
    """alpha * MLM + (1 - alpha) * KD + NSP (paper section 3.4), and AKT's mean over the layers.

    The teacher's vocabulary logits are those of the masked positions alone, and its NSP head does not run.
    """
    wanted, taught = {}, range(0)
    if transfer:
        taught = range(transfer.layers)
        wanted = {"output_hidden_states": True, "attention_layers": list(taught) if "at" in transfer.config["losses"] else []}
    with torch.no_grad():
        guide = teacher.mobilebert(**{key: batch[key] for key in pretraining.INPUTS if key in batch}, **wanted)
        logits = soft_logits(teacher, guide.last_hidden_state, batch["masked_positions"], config["temperature"])
    out = pretraining.heads(student, batch, **wanted)
    released = config["recipe"] == "released"
    mixed, mlm, kd = losses.pretraining_distillation(out["mlm"], logits, batch["masked_labels"], config["alpha"], released)
    weight = batch.get("masked_weight", 1.0)  # of a part of a batch: its share of the masked positions
    parts = {"mlm": mlm * weight, "kd": kd * weight, "nsp": losses.next_sentence(out["nsp"], batch["next_sentence_label"])}
    parts = {"loss": mixed * weight + parts["nsp"], **parts}
    if transfer:
        theirs = by_layer(guide.hidden_states, guide.attentions, taught)
        if transfer.slips:
            theirs = transfer.with_statistics(theirs, [losses.statistics(states) for states in guide.hidden_states])
        parts["layers"] = transfer.compare(by_layer(out["states"], out["attentions"], taught), theirs, batch)
        parts["loss"] = parts["loss"] + parts["layers"]
    return parts


def soft_logits(teacher, states: torch.Tensor, positions: torch.Tensor, temperature: float) -> torch.Tensor:
    """Masked-LM logits (N, V) at `positions` of the flattened `states` (B, T, C).

    The released code's `distill_temperature` multiplies what enters the head's transform, not the logits; at 1 nothing happens.
    """
    masked = states.flatten(0, 1).index_select(0, positions)
    return teacher.cls.predictions(masked if temperature == 1 else masked * temperature)
