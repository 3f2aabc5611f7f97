"""Build models with a task's head, compute their loss and fine-tune one with one seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.data.examples import Examples
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.cost import cost
from mobilebert.study import schedule
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.study.tasks import TASKS
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def inputs_of(model: nn.Module, batch: dict) -> dict:
    """Return the inputs that the model's signature takes: DistilBERT has no token types."""
    taken = inspect.signature(model.forward).parameters
    return {key: batch[key] for key in INPUTS if key in taken}


class BagOfEmbeddings(nn.Module):
    """The baseline: mean of the tokens' embeddings and a linear layer.

    A model that does not beat it has not learnt to read.
    """

    def __init__(self, vocab_size: int, width: int, num_labels: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.classifier = nn.Linear(width, num_labels)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the logits (B, num_labels)."""
        weights = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        mean = (self.embedding(input_ids) * weights).sum(1) / weights.sum(1)
        return {"logits": self.classifier(mean)}


def new_model(task_name: str, architecture: Mapping[str, Any], folder: Path | None) -> nn.Module:
    """Return a float32 model with the task's head on the pre-trained weights in `folder`.

    The bag of embeddings has no pre-trained weights.
    """
    task = TASKS[task_name]
    if architecture["model_type"] == "bag-of-embeddings":
        return BagOfEmbeddings(architecture["vocab_size"], architecture["hidden_size"], task.num_labels)
    assert folder is not None
    if architecture["model_type"] == "bert":
        from transformers import BertForQuestionAnswering as Answering
        from transformers import BertForSequenceClassification as Classification
    elif architecture["model_type"] == "auto":
        from transformers import AutoModelForQuestionAnswering as Answering
        from transformers import AutoModelForSequenceClassification as Classification
    else:
        from mobilebert.modeling.tasks import MobileBertForQuestionAnswering as Answering
        from mobilebert.modeling.tasks import MobileBertForSequenceClassification as Classification
    if task.is_squad:
        return cast(nn.Module, Answering.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False))
    head: dict[str, Any] = {}
    if "classifier_dropout" in architecture:  # 0.1 in the released code, whatever a checkpoint says; absent for a baseline
        head["classifier_dropout"] = architecture["classifier_dropout"]
    if task.labels:  # config.json names them for users of the saved folder
        head["id2label"] = dict(enumerate(task.labels))
        head["label2id"] = {label: index for index, label in enumerate(task.labels)}
    options = {"num_labels": task.num_labels, "dtype": torch.float32, "trust_remote_code": False}
    return cast(nn.Module, Classification.from_pretrained(folder, **options, **head))


def loss(task_name: str, out: Mapping[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the task's loss.

    It is the cross-entropy over classes; the squared error for STS-B; the mean of start and end
    cross-entropy for SQuAD.
    """
    task = TASKS[task_name]
    if task.is_squad:
        start = F.cross_entropy(out["start_logits"].float(), batch["start_positions"])
        return (start + F.cross_entropy(out["end_logits"].float(), batch["end_positions"])) / 2
    if task.is_regression:
        return F.mse_loss(out["logits"].float()[:, 0], batch["labels"])
    return F.cross_entropy(out["logits"].float(), batch["labels"])


CHECKPOINT_EVERY = 500  # steps: a minute of a small model


def make_plan(examples: Examples, model: nn.Module, setting: FinetuneConfig, seed: int) -> TrainingPlan:
    """Return the plan of a fine-tuning: linear warm-up and decay, batches bucketed by length."""
    size, epochs = setting.batch_size, setting.epochs
    assert size is not None  # set from the trial if the configuration has none
    assert epochs is not None
    each = -(-len(examples) // size)
    steps = each * epochs
    order: dict[int, list[np.ndarray]] = {}

    def batch(step: int) -> dict[str, torch.Tensor]:
        epoch = step // each
        if epoch not in order:
            order.clear()
            order[epoch] = examples.epoch(size, seed, epoch)
        return {key: torch.from_numpy(value) for key, value in examples.batch(order[epoch][step % each]).items()}

    end = 1e-4 if setting.recipe == "released" else 0.0
    warmup = int(setting.warmup_share * steps)
    return TrainingPlan(
        steps=steps,
        batch=batch,
        loss=lambda batch, step: {"loss": loss(setting.task, model(**inputs_of(model, batch)), batch)},
        rate=lambda step: schedule.linear(step, steps, warmup, end),
        seed=seed,
        precision=setting.precision,
        checkpoint_every=CHECKPOINT_EVERY,
        flops_per_token=flops_per_token(setting.architecture),
    )


def finetune(
    context: JobContext, examples: Examples, model: nn.Module, setting: FinetuneConfig, seed: int, device: str, name: str
) -> None:
    """Train `model` in place. `name`: of the saved state and of the curves."""
    assert setting.learning_rate is not None
    optimizer = optim.make(model, "adamw", setting.learning_rate, setting.weight_decay)
    train(context, model, optimizer, make_plan(examples, model, setting, seed), name, device)


def flops_per_token(architecture: Mapping) -> Callable[[int, int], float] | None:
    """Return a function of (step, padded length of its batch) that returns FLOPs per token.

    They are those of the encoder, forward and backward, with trained embeddings and without heads.
    Return None for the bag of embeddings and for a baseline whose sizes only transformers knows.
    """
    if architecture["model_type"] not in ("mobilebert", "bert"):
        return None
    return lambda step, length: 3 * cost(architecture, length).encoder_flops / length


def forward_of(model: nn.Module, device: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return the model as a function of NumPy arrays, for scoring."""
    model.eval()

    @torch.inference_mode()
    def forward(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {key: torch.from_numpy(value).to(device) for key, value in inputs_of(model, batch).items()}
        out = model(**tensors)
        return {key: out[key].float().cpu().numpy() for key in ("logits", "start_logits", "end_logits") if key in out}

    return forward
