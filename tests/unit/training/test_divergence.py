"""A loss or gradient that is not finite ends the training and names its step."""

import math

import pytest
import torch
from torch import nn
from toy_training import Toy, batch, loss_of, new_run, toy, weights

from mobilebert.training import optim
from mobilebert.training.batches import digest
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import Diverged

torch.set_num_threads(1)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, value):
    def loss(batch, step):
        losses = whole(batch, step)
        return losses | {"loss": losses["loss"] * float(value)} if step == 7 else losses

    model = Toy()
    whole, run = loss_of(model), new_run(tmp_path)
    task = TrainingPlan(steps=12, batch=batch, loss=loss, rate=lambda step: 1.0, seed=3, checkpoint_every=3)
    with pytest.raises(Diverged, match=rf"loss {value}, .* at step 7 of 12, .*; last good state: 6 steps, {run.state}"):
        train(run, model, optim.make(model, "lamb", 0.02, 0.01), task)
    assert torch.isfinite(weights(model)).all()
    assert [step for step, _ in run.curves["train_loss"]] == list(range(7))


def test_a_gradient_that_is_not_finite_names_its_step(tmp_path):
    """The root of zero has a finite value and an infinite slope."""
    weight = nn.ParameterList([nn.Parameter(torch.zeros(2))])
    task = TrainingPlan(
        steps=3,
        batch=batch,
        loss=lambda batch, step: {"loss": (weight[0] * 0 + (step < 1)).sqrt().sum()},
        rate=lambda step: 1.0,
        seed=0,
    )
    with pytest.raises(Diverged, match=r"at step 1 of 3, .*; last good state: none"):
        train(new_run(tmp_path), weight, optim.make(weight, "adamw", 0.1, 0.0), task)


def test_a_diverged_run_diverges_again_at_the_same_step(tmp_path):
    def broken(batch, step):
        return {"loss": torch.tensor(float("nan"), requires_grad=True)} if step == 7 else loss(batch, step)

    for _ in range(2):
        model = Toy()
        loss = loss_of(model)
        task = TrainingPlan(12, batch, broken, lambda step: 1.0, 3, checkpoint_every=3)
        run = new_run(tmp_path)
        with pytest.raises(Diverged, match=r"at step 7 of 12, .*; last good state: 6"):
            train(run, model, optim.make(model, "lamb", 0.02, 0.01), task)
        assert [step for step, _ in run.curves["train_loss"]] == list(range(7))


def test_the_batch_of_a_loss_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(Diverged, match=rf"at step 3 of 12, batch {digest(batch(3))};"):
        toy(tmp_path, loss=lambda batch, step: {"loss": torch.tensor(math.nan if step == 3 else 1.0, requires_grad=True)})
