"""Pre-training with masked LM and next-sentence prediction: the teacher, BERT_BASE, the bare student, Tables 2 and 3."""

from __future__ import annotations

from dataclasses import replace

import torch

from mobilebert.config import Study
from mobilebert.data.pairs import predictions
from mobilebert.data.tokenizer import check_vocabulary
from mobilebert.errors import UserError
from mobilebert.modeling import fused
from mobilebert.modeling.cost import cost
from mobilebert.paper import models
from mobilebert.records import Run
from mobilebert.settings import Training
from mobilebert.training import optim, pretraining, schedule
from mobilebert.training.device import device_of
from mobilebert.training.loop import Task, train
from mobilebert.training.parallel import world


def run(run: Run, study: Study) -> None:
    config = run.job.config
    device = device_of(study)
    corpus = corpus_of(run)
    torch.manual_seed(config["seed"])
    model = pretraining.new_model(config["architecture"]).to(device).train(config["dropout"])
    flops = cost(config["architecture"], config["length"]).training_flops_per_token
    task = replace(
        make_task(run, study, model, corpus),
        evaluate=lambda: pretraining.heldout_point(model, corpus, config["length"], device),
        flops_per_token=lambda step, length: flops,
    )
    train(run, model, make_optimizer(model, config), task, "train", device)
    pretraining.heldout(run, model, corpus, config["length"], device)
    pretraining.save_model(run, model)
    schedule_labels = study.schedule_labels(models()[run.job.name].settings, config["steps"])
    own_labels = corpus_labels(run, study) + split_labels(task, config["dropout"], run.details["train_split"])
    run.label(study.labels("pretrain") + schedule_labels + own_labels)


def corpus_labels(run: Run, study: Study) -> list[str]:
    """What the model read, where it is not the paper's BooksCorpus (0.8 G words) and Wikipedia (2.5 G)."""
    kind, tokens = study.data.source.split(":")[0], run.record_of("data").metrics["tokens_train"]
    if kind == "hub" and study.data.documents is None:
        return ["corpus: books of Project Gutenberg in place of BooksCorpus"]
    return [f"scaled: a corpus of {tokens:,.0f} tokens"]


def split_labels(task: Task, dropout: bool, split: dict) -> list[str]:
    """Return how a batch was split if that decided its dropout: the number of processes is in no fingerprint."""
    if task.by_row or not dropout or split["processes"] * split["accumulate"] == 1:
        return []
    return [f"split: {split['processes']} processes x {split['accumulate']} micro-batches, each with a dropout of its own"]


def corpus_of(run: Run):
    """Folder of the tokenized corpus, checked: the model's vocabulary must hold the tokenizer's, a published teacher's be it."""
    size, config = run.record_of("data").metrics["vocab_size"], run.job.config["architecture"]
    if size > config["vocab_size"]:
        raise UserError(f"vocab_size: the tokenizer has {size:.0f} entries, the model {config['vocab_size']}")
    check_vocabulary(run)
    return run.artefact_of("data", "corpus/train.tokens.npy").parent


def make_optimizer(model, config: dict, **options):
    return optim.make(model, config["optimizer"], config["learning_rate"], config["weight_decay"], config["beta2"], **options)


def section(run: Run, study: Study) -> Training:
    """The settings that a training stage was given: `pretrain`, `search`, `transfer` or `distill`."""
    return getattr(study, models()[run.job.name].settings if run.job.stage == "pretrain" else run.job.stage)


def make_task(run: Run, study: Study, model, corpus) -> Task:
    config = run.job.config
    own = section(run, study)
    if own.fused:
        fused.enable(model)
    steps, warmup = config["steps"], config["warmup_steps"]
    end = 1e-4 if config["recipe"] == "released" else 0.0
    group, drawn = world(), (config["length"], config["batch_size"], config["seed"], config["max_predictions"])
    return Task(
        steps=steps,
        batch=pretraining.batches(corpus, "train", *drawn, group.rank, group.size),
        loss=lambda batch, step: pretraining.loss(model, batch),
        rate=lambda step: schedule.linear(step, steps, warmup, end),
        seed=config["seed"],
        precision=config["precision"],
        checkpoint_every=own.checkpoint_every,
        accumulate=own.accumulate,
        by_row=study.device == "cpu" and not own.compile and not own.graph,
        compile=own.compile,
        graph=own.graph,
        predictions=int(predictions(config["length"], most=config["max_predictions"])),
        max_minutes=config["max_minutes"],
    )
