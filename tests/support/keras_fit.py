"""Train a classifier with Keras's fit and with PyTorch, on the same batches in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch

INPUTS = ("input_ids", "attention_mask")
Rows = dict[str, np.ndarray]  # the inputs, and labels
Epochs = Sequence[Sequence[Rows]]  # the batches of each epoch


@dataclass(frozen=True)
class Recipe:
    """AdamW with a linear schedule: up over `warmup` steps, then down to 0; norms clipped at 1."""

    rate: float
    steps: int
    warmup: int = 1
    decay: float = 0.0  # of matrices alone

    def multiplier(self, step: Any, least: Any = min) -> Any:
        """Return what multiplies the rate at a step, from 0."""
        return least((step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - self.warmup))


class Linear(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of a recipe."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def __call__(self, step):
        return self.recipe.rate * self.recipe.multiplier(keras.ops.cast(step, "float32"), keras.ops.minimum)


class Batches(keras.utils.PyDataset):
    """The batches of one epoch."""

    def __init__(self, batches: Sequence[Rows]):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return {name: self.batches[index][name] for name in INPUTS}, self.batches[index]["labels"]


def compiled(model: Any, recipe: Recipe) -> Any:
    """Return a Keras model, compiled for a recipe."""
    optimizer = keras.optimizers.AdamW(Linear(recipe), weight_decay=recipe.decay, epsilon=1e-6, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_list=[weight for weight in model.trainable_variables if len(weight.shape) < 2])
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    return model


def with_keras(model: Any, weights: Rows, epochs: Epochs, seed: int) -> list[float]:
    """Train a compiled model from weights with PyTorch's names; return each epoch's mean loss."""
    keras.utils.set_random_seed(seed)
    model.load_state_dict(weights)
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
    return [model.fit(Batches(batches), shuffle=False, verbose=0).history["loss"][0] for batches in epochs]


def with_pytorch(model: torch.nn.Module, epochs: Epochs, recipe: Recipe, seed: int) -> list[float]:
    """Train a model of PyTorch; return each epoch's mean loss."""
    torch.manual_seed(seed)
    weights = list(model.train().parameters())
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": recipe.decay},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.multiplier)
    means = []
    for batches in epochs:
        losses = []
        for batch in batches:
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            logits = model(**{name: tensors[name] for name in INPUTS})["logits"]
            loss = torch.nn.functional.cross_entropy(logits, tensors["labels"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        means.append(float(np.average(losses, weights=[len(batch["labels"]) for batch in batches])))
    return means


def logits_of_keras(model: Any, rows: Rows) -> np.ndarray:
    return model.predict({name: rows[name] for name in INPUTS}, batch_size=500, verbose=0).logits


def logits_of_pytorch(model: torch.nn.Module, rows: Rows) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(**{name: torch.from_numpy(rows[name]) for name in INPUTS})["logits"].numpy()


def accuracy(logits: np.ndarray, rows: Rows) -> float:
    """Return the accuracy in percent."""
    return 100 * float((logits.argmax(1) == rows["labels"]).mean())


def shown(task: str, found: dict[str, list[float]]) -> str:
    """Return the mean and each seed's accuracy, a line for each model."""
    lines = [f"{name}: {np.mean(each):.2f} ({', '.join(f'{value:.2f}' for value in each)})" for name, each in found.items()]
    return "".join(f"\n{task}, {line}" for line in lines)
