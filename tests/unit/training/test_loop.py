"""The steps of the training loop: rates, clipping, micro-batches, time budget, curves."""

import functools

import pytest
import torch
from family import TINY
from torch import nn
from toy_training import Clock, Toy, batch, loss_of, new_run, padded, toy, weights

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.pretraining import objective
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import UserError

torch.set_num_threads(1)


def test_dropout_is_on_in_training_mode_only_and_depends_on_the_seed(tmp_path):
    found = {
        name: weights(toy(tmp_path / name, **options)[1])
        for name, options in {
            "training": {},
            "again": {},
            "eval": {"training": False},
            "none": {"dropout": 0.0},
            "other seed": {"seed": 4},
        }.items()
    }
    assert torch.equal(found["training"], found["again"])
    assert torch.equal(found["eval"], found["none"])
    assert not torch.equal(found["training"], found["eval"])
    assert not torch.equal(found["training"], found["other seed"])


def test_every_step_draws_its_own_dropout(tmp_path):
    seen = []
    toy(tmp_path, loss=lambda batch, step: seen.append(torch.rand(3)) or {"loss": torch.zeros((), requires_grad=True)})
    assert len({tuple(draw.tolist()) for draw in seen}) == 12


def test_the_rate_multiplies_the_peak_which_is_restored_at_the_end(tmp_path):
    model = Toy()
    optimizer, seen, loss = optim.make(model, "adamw", 0.02, 0.01), [], loss_of(model)

    def watched(batch, step):
        seen.append({group["lr"] for group in optimizer.param_groups})
        return loss(batch, step)

    train(new_run(tmp_path), model, optimizer, TrainingPlan(5, batch, watched, lambda step: 0.5**step, 0))
    assert seen == [{0.02 * 0.5**step} for step in range(5)]
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}


def test_the_gradients_global_norm_is_clipped(tmp_path):
    """Plain descent at rate 1 moves by 0.5 if the gradient is 7, and by 0.1 if it is 0.1."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
    slopes, moved = {0: 7.0, 1: 0.1}, []

    def loss(batch, step):
        moved.append([parameter.item() for parameter in model])
        return {"loss": slopes.get(step, 0.0) * (0.6 * model[0].sum() + 0.8 * model[1].sum())}

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train(new_run(tmp_path), model, optimizer, TrainingPlan(3, batch, loss, lambda step: 1.0, 0, clip_norm=0.5))
    assert moved[1] == pytest.approx([-0.3, -0.4], rel=1e-4)
    assert moved[2] == pytest.approx([-0.36, -0.48], rel=1e-4)


def test_curves_are_the_losses_and_end_with_the_last_step(tmp_path):
    run, _ = toy(tmp_path, steps=450)
    assert set(run.curves) == {"train_loss", "train_part"}
    assert [step for step, _ in run.curves["train_loss"]] == [*range(0, 450, 2), 449]
    assert [value for _, value in run.curves["train_part"]] == [2 * value for _, value in run.curves["train_loss"]]
    assert run.curves["train_loss"][-1][1] < run.curves["train_loss"][0][1]
    assert run.details["train_steps"] == 450
    assert run.details["train_tokens_per_second"] > 0


def test_bfloat16_is_used_if_requested(tmp_path):
    seen, model = [], Toy()

    def loss(batch, step):
        seen.append(model(batch["input_ids"]).dtype)
        return loss_of(model)(batch, step)

    for precision in ("fp32", "bf16"):
        optimizer = optim.make(model, "adamw", 0.01, 0.0)
        task = TrainingPlan(1, batch, loss, lambda step: 1.0, 0, precision=precision)
        train(new_run(tmp_path / precision), model, optimizer, task)
    assert seen == [torch.float32, torch.bfloat16]
    assert model.dense.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
@pytest.mark.parametrize("parts", [2, 4, 6])
def test_micro_batches_learn_what_one_batch_does(tmp_path, kind, parts):
    """Micro-batches have 1 to 3 of 6 rows and unlike shares of the masked positions; in float64
    only rounding is left."""
    found = {}
    for accumulate in (1, parts):
        torch.manual_seed(0)
        model = MobileBertForPreTraining(MobileBertConfig(**TINY)).double()
        task = TrainingPlan(
            steps=4,
            batch=padded,
            loss=lambda batch, step, model=model: objective.loss(model, batch),
            rate=lambda step: 1.0,
            seed=0,
            accumulate=accumulate,
        )
        run = new_run(tmp_path / str(accumulate))
        train(run, model.eval(), optim.make(model, kind, 0.02, 0.01), task)
        found[accumulate] = weights(model), [value for key in sorted(run.curves) for _, value in run.curves[key]]
    # The losses are float32 (logits.float()), so gradients differ by its rounding; a mean of means
    # would differ by 1e-2.
    assert (found[1][0] - found[parts][0]).norm() / found[1][0].norm() < 1e-6
    assert found[parts][1] == pytest.approx(found[1][1], rel=1e-5)


def test_compiled_blocks_share_one_graph_and_learn_the_same(tmp_path, monkeypatch):
    """Blocks are traced, then run by PyTorch: the C++ compiler would take a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = MobileBertForPreTraining(MobileBertConfig(**TINY | {"num_hidden_layers": 4}))
        names = set(model.state_dict())
        task = TrainingPlan(
            steps=3,
            batch=padded,
            loss=lambda batch, step, model=model: objective.loss(model, batch),
            rate=lambda step: 1.0,
            seed=0,
            compile=compiled,
        )
        train(new_run(tmp_path / str(compiled)), model.eval(), optim.make(model, "lamb", 0.02, 0.01), task)
        assert set(model.state_dict()) == names
        found.append(weights(model))
    assert torch.equal(*found)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # for four layers and three steps


def test_a_batch_with_fewer_rows_than_micro_batches_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size: 4 rows are fewer than the 5 micro-batches"):
        toy(tmp_path, accumulate=5)


def test_a_time_budget_ends_the_training_and_drives_the_schedule(tmp_path, monkeypatch):
    """Half a minute holds 30 steps; the schedule has 12 places, and the rate follows it."""
    clock, rates = Clock(monkeypatch), []
    run, _ = toy(tmp_path, max_minutes=0.5, prepare=clock.prepare, rate=lambda place: rates.append(place) or 1.0)
    assert [place for _, place in clock.places] == [int(second / 30 * 12) for second in range(30)]
    assert rates == [place for _, place in clock.places]
    assert run.details["train_steps"] == 30
    assert [step for step, _ in run.curves["train_loss"]][-1] == 29


def test_held_out_points_are_part_of_the_curves_and_change_no_weight(tmp_path):
    _, expected = toy(tmp_path / "without", steps=40)
    evaluated = iter(range(99))
    run, found = toy(tmp_path / "with", steps=40, evaluate=lambda: torch.rand(5) is None or {"heldout_mlm": next(evaluated)})
    assert torch.equal(weights(found), weights(expected))
    assert run.curves["train_heldout_mlm"] == [(step, index) for index, step in enumerate([*range(0, 40, 4), 39])]


def test_details_have_speed_data_wait_and_split(tmp_path):
    run, _ = toy(tmp_path, steps=6)
    assert {"train_tokens_per_second", "train_data_wait_share", "train_first_step_seconds", "train_steps"} < set(run.details)
    assert run.details["train_split"] == {"processes": 1, "accumulate": 1}
    assert 0 <= run.details["train_data_wait_share"] < 1
