"""Fine-tune one model on one task and score it (paper sections 4.3 and 4.4)."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import torch

from mobilebert.data import cache
from mobilebert.data.examples import Examples, encode, encode_squad, sample
from mobilebert.data.tokenizer import copy_tokenizer, load_tokenizer
from mobilebert.evaluation.scoring import evaluate
from mobilebert.finetuning.search import Trial
from mobilebert.finetuning.stacked import train as together
from mobilebert.finetuning.task import BagOfEmbeddings, finetune, forward_of, new_model
from mobilebert.finetuning.trials import (
    Train,
    collect,
    constant_exact_match,
    run_all_trials,
    runs_at_once,
    setting_labels,
    subset_labels,
)
from mobilebert.jobs.context import JobContext
from mobilebert.pretraining.common import check_vocabulary
from mobilebert.pretraining.objective import weights_folder
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.study.tasks import TASKS
from mobilebert.training import checkpoint
from mobilebert.training.device import device_of


def main(context: JobContext, study: Study) -> None:
    """Run every trial of the job and collect the trials in the record."""
    setting, device = context.settings(FinetuneConfig), device_of(study)
    task = TASKS[setting.task]
    check_vocabulary(context)
    data = context.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    file = context.artefact_of("data", f"tasks/{task.name}/train.parquet")
    tokenizer = load_tokenizer(data / "tokenizer")
    whole = pd.read_parquet(file)
    frame = sample(whole, setting.train_rows, seed=0)
    pretrained = [key for key in context.job.inputs if key != "data"]
    folder = weights_folder(context, pretrained[0]) if pretrained else None
    constant = constant_exact_match(data, setting) if task.is_squad else {}

    with cache.kept_in(context.results / context.study / ".cache"):
        if task.is_squad:
            examples = encode_squad(tokenizer, frame, setting, training=True)[0]
        else:
            examples = encode(tokenizer, task.name, frame, setting.length)

        def new(trial: Trial) -> torch.nn.Module:
            torch.manual_seed(trial.seed)
            return new_model(task.name, setting.architecture, folder).to(device).train()

        def seen(trial: Trial) -> Examples:
            return examples if trial.part == 1 else examples.part(math.ceil(len(examples) / trial.part))

        def finish(model: torch.nn.Module, trial: Trial, out: Path) -> tuple[dict, dict]:
            metrics, details = evaluate(forward_of(model, device), tokenizer, data, setting, out)
            if trial.role == "seed" and not isinstance(model, BagOfEmbeddings):  # no stage reads the baseline's weights
                checkpoint.save_pretrained(model, out / "model")
                longest = getattr(model.config, "max_position_embeddings", setting.length)
                copy_tokenizer(data / "tokenizer", out / "model", longest)  # so the folder loads without the study
            return metrics | constant, details

        def train(part: JobContext, trial: Trial, out: Path) -> tuple[dict, dict]:
            model = new(trial)
            finetune(part, seen(trial), model, setting.model_copy(update=trial.setting), trial.seed, device, trial.name)
            return finish(model, trial, out)

        def train_together(part: JobContext, trials: list[Trial]) -> Train | None:
            trained = together.fit(part, trials, new, seen, setting, device)
            return None if trained is None else (lambda part, trial, out: finish(trained(trial), trial, out))

        runs = run_all_trials(context, train, train_together, runs_at_once(study, setting, device))
    collect(context, runs, task.metrics[0])
    context.details["train_rows"] = len(frame)
    context.label(study.labels("finetune"), *pretrained)
    context.label(subset_labels(context, task.name, len(frame), len(whole), setting))
    context.label(setting_labels(study, setting, context.labels))
