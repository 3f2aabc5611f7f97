"""Build what all training stages share: the corpus, the optimizer and the plan of the loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mobilebert.data.segment_pairs import predictions
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.kernels import fused
from mobilebert.pretraining import objective
from mobilebert.study import schedule
from mobilebert.study.recipe import Training
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import CheckpointConfig, ModelConfig, TrainingConfig
from mobilebert.training import optim
from mobilebert.training.distributed.processes import world
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import UserError


def check_vocabulary(context: JobContext) -> None:
    """Check that the published weights that a job reads fit the tokenizer of its data.

    Raises UserError if a checkpoint has another vocabulary. If it has none, only the size of its
    table is checked, which may exceed the tokenizer's: published tables are padded.
    """
    data = context.record_of("data")
    for key in context.job.inputs:
        model = context.record_of(key) if key.startswith("checkpoint/") else None
        if model and model.details.get("vocab", data.details["vocab"]) != data.details["vocab"]:
            raise UserError(
                f"{key}: its vocabulary ({model.details['vocab_size']} entries, sha256 {model.details['vocab'][:12]}) is not the "
                f"data's ({data.metrics['vocab_size']:.0f} entries, sha256 {data.details['vocab'][:12]})"
            )
        size = context.graph[key].settings(CheckpointConfig).architecture["vocab_size"] if model else 0
        tokens = data.metrics["vocab_size"]
        assert tokens is not None
        if model and tokens > size:
            raise UserError(f"{key}: the tokenizer has {tokens:.0f} entries, the model {size}")


def corpus_labels(context: JobContext, study: Study) -> list[str]:
    """Return a label of the corpus, which differs from the paper's.

    The paper's is BooksCorpus (0.8 G words) and Wikipedia (2.5 G words).
    """
    kind, tokens = study.data.source.split(":")[0], context.record_of("data").metrics["tokens_train"]
    if kind == "hub" and study.data.documents is None:
        return ["corpus: books of Project Gutenberg in place of BooksCorpus"]
    return [f"scaled: a corpus of {tokens:,.0f} tokens"]


def corpus_of(context: JobContext) -> Path:
    """Return the folder of the tokenized corpus.

    Raises UserError if the model's vocabulary is smaller than the tokenizer's, or as
    `check_vocabulary` does.
    """
    size = context.record_of("data").metrics["vocab_size"]
    most = context.settings(ModelConfig).architecture["vocab_size"]
    if size > most:
        raise UserError(f"vocab_size: the tokenizer has {size:.0f} entries, the model {most}")
    check_vocabulary(context)
    return context.artefact_of("data", "corpus/train.tokens.npy").parent


def make_optimizer(model: nn.Module, config: TrainingConfig, **options) -> torch.optim.Optimizer:
    """Return the configured optimizer; `options` go to `optim.make`."""
    return optim.make(model, config.optimizer, config.learning_rate, config.weight_decay, config.beta2, **options)


def section(context: JobContext, study: Study) -> Training:
    """Return the study's section of the job: `pretrain`, `search`, `transfer` or `distill`."""
    return getattr(study, study.models[context.job.name].settings if context.job.stage == "pretrain" else context.job.stage)


def make_plan(context: JobContext, study: Study, model: nn.Module, corpus: Path) -> TrainingPlan:
    """Return the plan of a pre-training; transfer and distillation replace its loss and more."""
    config = context.settings(TrainingConfig)
    own = section(context, study)
    if own.fused:
        fused.enable(model)
    steps, warmup = config.steps, config.warmup_steps
    end = 1e-4 if config.recipe == "released" else 0.0
    group, drawn = world(), (config.length, config.batch_size, config.seed, config.max_predictions)
    return TrainingPlan(
        steps=steps,
        batch=objective.batches(corpus, "train", *drawn, group.rank, group.size),
        loss=lambda batch, step: objective.loss(model, batch),
        rate=lambda step: schedule.linear(step, steps, warmup, end),
        seed=config.seed,
        precision=config.precision,
        checkpoint_every=own.checkpoint_every,
        accumulate=own.accumulate,
        by_row=study.device == "cpu" and not own.compile and not own.graph,
        compile=own.compile,
        graph=own.graph,
        predictions=int(predictions(config.length, most=config.max_predictions)),
        max_minutes=config.max_minutes,
    )
