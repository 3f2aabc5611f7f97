"""Pre-training distillation: masked LM, the teacher's soft labels and NSP; for AKT the layers' losses beside them."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from mobilebert.config import Study
from mobilebert.distillation import losses
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder
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
    layers = None
    if config["transfer"]:
        layers = Transfer(student, teacher, {**config["transfer"], "recipe": config["recipe"]})
    task = replace(
        make_task(run, study, student, corpus),
        loss=lambda batch, step: loss(student, teacher, batch, config, layers),
        checkpoint_every=study.distill.checkpoint_every,
    )
    train(run, student.eval(), make_optimizer(student, config), task, "train", device)
    pretraining.heldout(run, student, corpus, config["length"], device)
    pretraining.save_model(run, student)
    run.label(study.labels("distill") + study.schedule_labels("distill"), *run.job.inputs[1:])


def loss(student, teacher, batch: dict, config: dict, layers: Transfer | None) -> dict[str, torch.Tensor]:
    """alpha * MLM + (1 - alpha) * KD + NSP (paper section 3.4), and AKT's mean over the layers."""
    wanted = {}
    if layers:
        wanted = {"output_hidden_states": True, "attention_layers": list(range(layers.layers))}
    with torch.no_grad():
        guide = pretraining.heads(teacher, batch, **wanted)
    out = pretraining.heads(student, batch, **wanted)
    released = config["recipe"] == "released"
    mixed, mlm, kd = losses.pretraining_distillation(out["mlm"], guide["mlm"], batch["masked_labels"], config["alpha"], released)
    nsp = F.cross_entropy(out["nsp"].float(), batch["next_sentence_label"])
    parts = {"loss": mixed + nsp, "mlm": mlm, "kd": kd, "nsp": nsp}
    if layers:
        every = range(layers.layers)
        parts["layers"] = layers.compare(out["states"], out["attentions"], guide["states"], guide["attentions"], every, batch)
        parts["loss"] = parts["loss"] + parts["layers"]
    return parts
