"""Pre-training distillation: masked LM, the teacher's soft labels and NSP; for AKT the layers' losses beside them."""

from __future__ import annotations

from dataclasses import replace

import torch

from mobilebert.config import Study
from mobilebert.distillation import losses
from mobilebert.distillation.budget import flops_per_token
from mobilebert.distillation.sharing import Prepared, SharedPass, siblings, train_together
from mobilebert.distillation.transfer import Transfer, by_layer, copy_outside_encoder
from mobilebert.records import Run
from mobilebert.stages.pretrain import corpus_of, make_optimizer, make_task
from mobilebert.stages.transfer import teacher_of
from mobilebert.training import pretraining
from mobilebert.training.device import device_of


def run(run: Run, study: Study) -> None:
    device = device_of(study)
    corpus = corpus_of(run)
    teacher = teacher_of(run, study, device)

    def prepare(run: Run, shared: SharedPass) -> Prepared:
        config = run.job.config
        flops = flops_per_token(config["architecture"], teacher.config.to_dict(), config["length"])
        student = new_student(run, teacher, device)
        transfer = None
        if config["transfer"]:
            transfer = Transfer(student, teacher, {**config["transfer"], "recipe": config["recipe"]})

        def losses_of(batch: dict, step: int) -> dict[str, torch.Tensor]:
            theirs = shared.get(run.job.id, step, lambda: guide(teacher, batch, config, transfer))
            return loss(student, theirs, batch, config, transfer)

        task = replace(
            make_task(run, study, student, corpus),
            loss=losses_of,
            evaluate=lambda: pretraining.heldout_point(student, corpus, config["length"], device),
            flops_per_token=lambda step, length: flops,
        )
        return student.eval(), make_optimizer(student, config), task

    with siblings(run, study) as others:
        student = train_together(run, others, prepare, device)
    pretraining.heldout(run, student, corpus, run.job.config["length"], device)
    pretraining.save_model(run, student)
    run.label(study.labels("distill") + schedule_labels(study, run.job.config), *run.job.inputs[1:])


def schedule_labels(study: Study, config: dict) -> list[str]:
    """The labels of distillation's schedule; of AKT, which makes the transfer's steps here, those of the transfer's too."""
    return study.schedule_labels("distill") + (study.schedule_labels("transfer") if config["transfer"] else [])


def new_student(run: Run, teacher, device: str):
    """The student that the transfer left, or a new one."""
    config, transferred = run.job.config, f"transfer/{run.job.name}"
    if transferred in run.job.inputs:
        return pretraining.input_model(run, transferred).to(device)
    torch.manual_seed(config["seed"])
    student = pretraining.new_model(config["architecture"]).to(device)
    if config["control"] != "fresh-student":
        copy_outside_encoder(student, teacher)
    return student


def wanted(transfer: Transfer | None) -> dict:
    """What AKT asks of both models beside their last hidden states."""
    if not transfer:
        return {}
    maps = list(range(transfer.layers)) if "at" in transfer.config["losses"] else []
    return {"output_hidden_states": True, "attention_layers": maps}


@torch.no_grad()
def guide(teacher, batch: dict, config: dict, transfer: Transfer | None) -> tuple[torch.Tensor, dict[int, dict]]:
    """What the teacher tells its students of a batch: masked-LM logits (N, V), and for AKT its layers as `Transfer.compare` takes
    them.

    The vocabulary logits are those of the masked positions alone, and the NSP head does not run.
    """
    inputs = {key: batch[key] for key in pretraining.INPUTS if key in batch}
    out = teacher.mobilebert(**inputs, **wanted(transfer))
    logits = soft_logits(teacher, out.last_hidden_state, batch["masked_positions"], config["temperature"])
    if not transfer:
        return logits, {}
    layers = by_layer(out.hidden_states, out.attentions, range(transfer.layers))
    if transfer.slips:
        layers = transfer.with_statistics(layers, [losses.statistics(states) for states in out.hidden_states])
    return logits, layers


def loss(student, theirs: tuple, batch: dict, config: dict, transfer: Transfer | None) -> dict[str, torch.Tensor]:
    """alpha * MLM + (1 - alpha) * KD + NSP (paper section 3.4), and AKT's mean over the layers. theirs: from `guide`."""
    logits, layers = theirs
    out = pretraining.heads(student, batch, **wanted(transfer))
    released = config["recipe"] == "released"
    labels, real = batch["masked_labels"], batch.get("masked_real")
    mixed, mlm, kd = losses.pretraining_distillation(out["mlm"], logits, labels, config["alpha"], released, real)
    weight = batch.get("masked_weight", 1.0)  # of a part of a batch: its share of the masked positions
    parts = {"mlm": mlm * weight, "kd": kd * weight, "nsp": losses.next_sentence(out["nsp"], batch["next_sentence_label"])}
    parts = {"loss": mixed * weight + parts["nsp"], **parts}
    if transfer:
        mine = by_layer(out["states"], out["attentions"], range(transfer.layers))
        parts["layers"] = transfer.compare(mine, layers, batch)
        parts["loss"] = parts["loss"] + parts["layers"]
    return parts


def soft_logits(teacher, states: torch.Tensor, positions: torch.Tensor, temperature: float) -> torch.Tensor:
    """Masked-LM logits (N, V) at `positions` of the flattened `states` (B, T, C).

    The released code's `distill_temperature` multiplies what enters the head's transform, not the logits; at 1 nothing happens.
    """
    masked = states.flatten(0, 1).index_select(0, positions)
    return teacher.cls.predictions(masked if temperature == 1 else masked * temperature)
