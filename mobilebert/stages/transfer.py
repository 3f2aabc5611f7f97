"""Knowledge transfer, layer by layer (PKT) or all layers at once (JKT): the student's encoder learns the teacher's features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from mobilebert.config import Study
from mobilebert.distillation.budget import transfer_flops_per_token
from mobilebert.distillation.sharing import Prepared, SharedPass, siblings, train_together
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, layer_of, shuffle_weights
from mobilebert.jobs import final_job
from mobilebert.paper import models
from mobilebert.records import Run
from mobilebert.stages.pretrain import corpus_of, make_optimizer, make_task
from mobilebert.training import pretraining
from mobilebert.training.device import device_of


def run(run: Run, study: Study) -> None:
    config = run.job.config
    device = device_of(study)
    corpus = corpus_of(run)
    teacher = teacher_of(run, study, device)

    def prepare(run: Run, shared: SharedPass) -> Prepared:
        config = run.job.config
        torch.manual_seed(config["seed"])
        student = pretraining.new_model(config["architecture"]).to(device)
        run.details["copied_parameters"] = len(copy_outside_encoder(student, teacher))
        transfer = Transfer(student, teacher, config)
        optimizer = make_optimizer(student, config, group=layer_of)
        task = replace(
            make_task(run, study, student, corpus),
            loss=lambda batch, step: transfer.loss(batch, step, partial(shared.get, run.job.id, step)),
            rate=transfer.rate,
            prepare=transfer.prepare(optimizer),
            flops_per_token=partial(transfer_flops_per_token, config, config["architecture"], teacher.config.to_dict()),
            stage=transfer.stage,
        )
        return student.eval(), optimizer, task  # no dropout, as the released code

    with siblings(run, study) as others:
        student = train_together(run, others, prepare, device)
    run.metrics["heldout_transfer_loss"] = heldout_loss(Transfer(student, teacher, config), corpus, config, device)
    pretraining.save_model(run, student)
    run.label(study.labels("transfer") + study.schedule_labels("transfer"), *run.job.inputs[1:])


def teacher_of(run: Run, study: Study, device: str):
    """The frozen teacher; its weights shuffled for that control."""
    model = models()[run.job.name]
    teacher = pretraining.input_model(run, final_job(study, model.teacher)).to(device).eval()
    if run.job.config["control"] == "shuffled-teacher":
        shuffle_weights(teacher, run.job.config["seed"])
    return teacher.requires_grad_(False)


@torch.no_grad()
def heldout_loss(transfer: Transfer, corpus, config: dict, device: str) -> float:
    """Mean transfer loss over every layer on held-out pairs, after all stages."""
    batch_at = pretraining.batches(corpus, "heldout", config["length"], pretraining.HELDOUT_SIZE, seed=20)
    total = 0.0
    for index in range(pretraining.HELDOUT_BATCHES):
        batch = {key: value.to(device) for key, value in batch_at(index).items()}
        total += transfer.loss_of(batch, transfer.layers, range(transfer.layers)).item()
    return total / pretraining.HELDOUT_BATCHES
