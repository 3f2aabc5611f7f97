"""Train a student by pre-training distillation: masked LM, the teacher's soft labels and NSP.

AKT adds the layer-wise losses.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mobilebert.distillation.objective import distillation_loss, new_student, schedule_labels, teacher_guide, teacher_of
from mobilebert.distillation.shared_teacher import Prepared, SharedPass, jobs_sharing_teacher, train_together
from mobilebert.distillation.transfer import Transfer
from mobilebert.jobs.context import JobContext
from mobilebert.pretraining import objective
from mobilebert.pretraining.common import corpus_of, make_optimizer, make_plan
from mobilebert.study.budget import flops_per_token
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import DistillConfig
from mobilebert.training.device import device_of


def main(context: JobContext, study: Study) -> None:
    """Train the student, beside others with the same teacher; save it and its held-out figures."""
    device = device_of(study)
    corpus = corpus_of(context)
    teacher = teacher_of(context, study, device)

    def prepare(context: JobContext, shared: SharedPass) -> Prepared:
        config = context.settings(DistillConfig)
        flops = flops_per_token(config.architecture, teacher.config.to_dict(), config.length)
        student = new_student(context, teacher, device)
        transfer = None
        if config.layerwise:
            transfer = Transfer(student, teacher, config.layerwise)

        def losses_of(batch: dict, step: int) -> dict[str, torch.Tensor]:
            theirs = shared.get(context.job.id, step, lambda: teacher_guide(teacher, batch, config, transfer))
            return distillation_loss(student, theirs, batch, config, transfer)

        task = replace(
            make_plan(context, study, student, corpus),
            loss=losses_of,
            evaluate=lambda: objective.heldout_point(student, corpus, config.length, device),
            flops_per_token=lambda step, length: flops,
        )
        return student.eval(), make_optimizer(student, config), task

    with jobs_sharing_teacher(context, study) as others:
        student = train_together(context, others, prepare, device)
    objective.heldout(context, student, corpus, context.settings(DistillConfig).length, device)
    objective.save_model(context, student)
    context.label(study.labels("distill") + schedule_labels(study, context.settings(DistillConfig)), *context.job.inputs[1:])
