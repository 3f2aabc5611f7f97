"""Train a student's encoder to reproduce the teacher's features (knowledge transfer).

PKT trains layer by layer, JKT all layers at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from mobilebert.distillation.objective import teacher_of
from mobilebert.distillation.shared_teacher import Prepared, SharedPass, jobs_sharing_teacher, train_together
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, layer_of
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.heads import MobileBertForPreTraining
from mobilebert.pretraining import objective
from mobilebert.pretraining.common import corpus_of, make_optimizer, make_plan
from mobilebert.study.budget import transfer_flops_per_token
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import TransferConfig
from mobilebert.training.device import device_of


def main(context: JobContext, study: Study) -> None:
    """Train the student, beside others with the same teacher; save it and its held-out loss."""
    config = context.settings(TransferConfig)
    device = device_of(study)
    corpus = corpus_of(context)
    teacher = teacher_of(context, study, device)

    def prepare(context: JobContext, shared: SharedPass) -> Prepared:
        config = context.settings(TransferConfig)
        torch.manual_seed(config.seed)
        student = cast(MobileBertForPreTraining, objective.new_model(config.architecture).to(device))
        context.details["copied_parameters"] = len(copy_outside_encoder(student, teacher))
        transfer = Transfer(student, teacher, config)
        optimizer = make_optimizer(student, config, group=layer_of)
        task = replace(
            make_plan(context, study, student, corpus),
            loss=lambda batch, step: transfer.loss(batch, step, partial(shared.get, context.job.id, step)),
            rate=transfer.rate,
            prepare=transfer.prepare(optimizer),
            flops_per_token=partial(transfer_flops_per_token, config, config.architecture, teacher.config.to_dict()),
            stage=transfer.stage,
        )
        return student.eval(), optimizer, task  # no dropout, as in the released code

    with jobs_sharing_teacher(context, study) as others:
        student = cast(MobileBertForPreTraining, train_together(context, others, prepare, device))
    context.metrics["heldout_transfer_loss"] = heldout_loss(Transfer(student, teacher, config), corpus, config, device)
    objective.save_model(context, student)
    context.label(study.labels("transfer") + study.schedule_labels("transfer"), *context.job.inputs[1:])


@torch.no_grad()
def heldout_loss(transfer: Transfer, corpus: Path, config: TransferConfig, device: str) -> float:
    """Return the mean transfer loss over all layers on held-out pairs, after all stages of PKT."""
    batch_at = objective.batches(corpus, "heldout", config.length, objective.HELDOUT_SIZE, seed=20)
    total = 0.0
    for index in range(objective.HELDOUT_BATCHES):
        batch = {key: value.to(device) for key, value in batch_at(index).items()}
        total += transfer.loss_of(batch, transfer.layers, range(transfer.layers)).item()
    return total / objective.HELDOUT_BATCHES
