"""Build what pre-training, transfer and distillation share: the corpus, the optimizer, the plan of the loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mobilebert.data.segment_pairs import predictions
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.kernels import fused
from mobilebert.paper import models
from mobilebert.pretraining import objective
from mobilebert.study import schedule
from mobilebert.study.recipe import Training
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import CheckpointConfig, ModelConfig, TrainingConfig
from mobilebert.training import optim
from mobilebert.training.distributed.processes import world
from mobilebert.training.loop import Task
from mobilebert.util.errors import UserError


def check_vocabulary(context: JobContext) -> None:
    """Whether the weights that a job starts from, or learns from, go with the tokenizer of its data.

    Raises UserError where a checkpoint brought another vocabulary. One that brought none is known by its size alone, and that may
    be more than the tokenizer's: published tables are padded.
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
    """What the model read, where it is not the paper's BooksCorpus (0.8 G words) and Wikipedia (2.5 G)."""
    kind, tokens = study.data.source.split(":")[0], context.record_of("data").metrics["tokens_train"]
    if kind == "hub" and study.data.documents is None:
        return ["corpus: books of Project Gutenberg in place of BooksCorpus"]
    return [f"scaled: a corpus of {tokens:,.0f} tokens"]


def corpus_of(context: JobContext) -> Path:
    """Folder of the tokenized corpus, checked: the model's vocabulary must hold the tokenizer's, a published teacher's be it."""
    size = context.record_of("data").metrics["vocab_size"]
    most = context.settings(ModelConfig).architecture["vocab_size"]
    if size > most:
        raise UserError(f"vocab_size: the tokenizer has {size:.0f} entries, the model {most}")
    check_vocabulary(context)
    return context.artefact_of("data", "corpus/train.tokens.npy").parent


def make_optimizer(model: nn.Module, config: TrainingConfig, **options) -> torch.optim.Optimizer:
    return optim.make(model, config.optimizer, config.learning_rate, config.weight_decay, config.beta2, **options)


def section(context: JobContext, study: Study) -> Training:
    """The settings that a training stage was given: `pretrain`, `search`, `transfer` or `distill`."""
    return getattr(study, models()[context.job.name].settings if context.job.stage == "pretrain" else context.job.stage)


def make_task(context: JobContext, study: Study, model: nn.Module, corpus: Path) -> Task:
    config = context.settings(TrainingConfig)
    own = section(context, study)
    if own.fused:
        fused.enable(model)
    steps, warmup = config.steps, config.warmup_steps
    end = 1e-4 if config.recipe == "released" else 0.0
    group, drawn = world(), (config.length, config.batch_size, config.seed, config.max_predictions)
    return Task(
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
