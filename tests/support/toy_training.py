"""Train a toy model, and stop it at any step."""

from pathlib import Path

import torch
from torch import nn

from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util import progress


class Toy(nn.Module):
    """A model of embedding, dropout, norm and a linear layer."""

    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout = nn.Embedding(11, 8), nn.Dropout(dropout)
        self.LayerNorm, self.dense = nn.LayerNorm(8), nn.Linear(8, 11)

    def forward(self, ids):
        return self.dense(self.LayerNorm(self.dropout(self.embedding(ids))))


def batch(step):
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "labels": (ids * 3 + 1) % 11}


def loss_of(model):
    def loss(batch, step):
        value = nn.functional.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
        return {"loss": value, "part": value.detach() * 2}

    return loss


def new_run(folder: Path, fingerprint="a" * 64) -> JobContext:
    run = JobContext(Job("pretrain", "toy", {}, (), fingerprint), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


def toy(folder, kind="lamb", training=True, name="train", dropout=0.3, **changes):
    """Train or resume in `folder`; return context and model. `changes` go into the task."""
    run, model = new_run(folder), Toy(dropout).train(training)
    optimizer = optim.make(model, kind, 0.02, 0.01)
    task = {"steps": 12, "batch": batch, "loss": loss_of(model), "rate": lambda step: 1 / (1 + step), "seed": 3}
    train(run, model, optimizer, TrainingPlan(**(task | {"checkpoint_every": 4} | changes)), name)
    return run, model


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Stop(Exception):
    pass


def stop_at(function, last):
    def stopped(*arguments):
        if arguments[-1] == last:
            raise Stop
        return function(*arguments)

    return stopped


def padded(step):
    """Return a pre-training batch of 6 rows whose masked positions are spread unevenly."""
    generator = torch.Generator().manual_seed(step)
    real = torch.randint(5, 13, (6,), generator=generator)
    mask = (torch.arange(12) < real[:, None]).long()
    chosen = ((torch.rand(6, 12, generator=generator) < 0.2) & (mask == 1)).flatten()
    chosen[torch.arange(6) * 12 + 1] = True
    ids = torch.randint(31, (6, 12), generator=generator)
    positions = chosen.nonzero().flatten()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "masked_positions": positions,
        "masked_labels": ids.flatten()[positions],
        "next_sentence_label": torch.randint(2, (6,), generator=generator),
    }


class Clock:
    """A clock that advances by one second at each step, and nowhere else."""

    now = 0.0

    def batch(self, step):
        return batch(step)

    def prepare(self, place):
        self.places.append((self.now, place))
        self.now += 1.0

    def __init__(self, monkeypatch):
        self.places = []
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
