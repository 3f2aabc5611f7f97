"""Pre-train a model with masked LM and next-sentence prediction, without a teacher.

Such models are the teacher, BERT_BASE, the bare student and those of Tables 2 and 3.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mobilebert.jobs.context import JobContext
from mobilebert.modeling.cost import cost
from mobilebert.pretraining import objective
from mobilebert.pretraining.common import corpus_labels, corpus_of, make_optimizer, make_plan
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import PretrainConfig
from mobilebert.training.device import device_of
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan


def main(context: JobContext, study: Study) -> None:
    """Train the row's model; save it and its held-out figures."""
    config = context.settings(PretrainConfig)
    device = device_of(study)
    corpus = corpus_of(context)
    torch.manual_seed(config.seed)
    model = objective.new_model(config.architecture).to(device).train(config.dropout)
    flops = cost(config.architecture, config.length).training_flops_per_token
    task = replace(
        make_plan(context, study, model, corpus),
        evaluate=lambda: objective.heldout_point(model, corpus, config.length, device),
        flops_per_token=lambda step, length: flops,
    )
    train(context, model, make_optimizer(model, config), task, "train", device)
    objective.heldout(context, model, corpus, config.length, device)
    objective.save_model(context, model)
    schedule_labels = study.schedule_labels(study.models[context.job.name].settings, config.steps)
    own_labels = corpus_labels(context, study) + split_labels(task, config.dropout, context.details["train_split"])
    context.label(study.labels("pretrain") + schedule_labels + own_labels)


def split_labels(task: TrainingPlan, dropout: bool, split: dict) -> list[str]:
    """Return a label of how batches were split if the split decided their dropout.

    The fingerprint does not cover the number of processes.
    """
    if task.by_row or not dropout or split["processes"] * split["accumulate"] == 1:
        return []
    return [f"split: {split['processes']} processes x {split['accumulate']} micro-batches, each with a dropout of its own"]
