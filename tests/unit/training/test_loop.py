"""The training loop: stopped anywhere, it resumes to the same weights and curves."""

import functools
import json
import math
import os
import re
import resource
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from family import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.jobs.context import JobContext
from mobilebert.pretraining import objective
from mobilebert.study.job import Job
from mobilebert.training import optim
from mobilebert.training.batches import digest
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util import progress
from mobilebert.util.errors import Diverged, UserError

torch.set_num_threads(1)


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


def on_disk(run):
    return [json.loads(line) for line in (run.state / "curves.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


def stop_at(function, last):
    def stopped(*arguments):
        if arguments[-1] == last:
            raise Stop
        return function(*arguments)

    return stopped


@settings(max_examples=25, deadline=None)
@given(
    stops=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    every=st.integers(1, 13),
    kind=st.sampled_from(["lamb", "adamw"]),
    training=st.booleans(),
)
def test_resume_gives_the_same_weights(tmp_path_factory, stops, every, kind, training):
    folder = tmp_path_factory.mktemp("runs")
    options = {"kind": kind, "training": training, "checkpoint_every": every}
    whole, expected = toy(folder / "whole", **options)
    for last in sorted(stops):
        with pytest.raises(Stop):
            toy(folder / "broken", **options, batch=stop_at(batch, last))
    run, found = toy(folder / "broken", **options)
    assert torch.equal(weights(found), weights(expected))
    assert run.curves == whole.curves
    assert on_disk(run) == on_disk(whole)
    assert [step for step, _ in run.curves["train_loss"]] == list(range(12))


def test_resume_starts_at_the_last_state(tmp_path):
    with pytest.raises(Stop):
        toy(tmp_path, batch=stop_at(batch, 10))
    seen = []
    toy(tmp_path, prepare=seen.append)
    assert seen == [8, 9, 10, 11]  # states after 4 and 8 steps


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


def test_a_kill_during_resume_loses_no_curves(tmp_path, monkeypatch):
    """A process that resumes may be killed in the middle of any file that it writes."""
    whole, _ = toy(tmp_path / "whole")
    with pytest.raises(Stop):
        toy(tmp_path / "broken", batch=stop_at(batch, 9))

    def cut_short(path, text, **options):
        path.write_bytes(text.encode()[:10])
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_short)
        with pytest.raises(Stop):
            toy(tmp_path / "broken", batch=stop_at(batch, 8))
    run, _ = toy(tmp_path / "broken")
    assert run.curves == whole.curves


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


def test_two_trainings_of_one_job_do_not_mix(tmp_path):
    """The second seed does not load the first one's state, nor lose its curves when it resumes."""
    _, first = toy(tmp_path, name="seed1")
    with pytest.raises(Stop):
        toy(tmp_path, name="seed11", seed=5, batch=stop_at(batch, 9))
    run, second = toy(tmp_path, name="seed11", seed=5)
    alone, expected = toy(tmp_path / "alone", name="seed11", seed=5)
    assert torch.equal(weights(second), weights(expected))
    assert not torch.equal(weights(second), weights(first))
    assert run.curves["seed11_loss"] == alone.curves["seed11_loss"]
    assert [step for step, _ in run.curves["seed1_loss"]] == list(range(12))


def test_a_truncated_line_of_the_curves_is_dropped(tmp_path):
    whole, _ = toy(tmp_path / "whole")
    with pytest.raises(Stop):
        toy(tmp_path / "cut", batch=stop_at(batch, 10))
    with (new_run(tmp_path / "cut").state / "curves.jsonl").open("a") as stream:
        stream.write('{"step": 10, "train_lo')
    run, _ = toy(tmp_path / "cut")
    assert run.curves == whole.curves


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


def test_a_time_budget_ends_the_training_and_drives_the_schedule(tmp_path, monkeypatch):
    """Half a minute holds 30 steps; the schedule has 12 places, and the rate follows it."""
    clock, rates = Clock(monkeypatch), []
    run, _ = toy(tmp_path, max_minutes=0.5, prepare=clock.prepare, rate=lambda place: rates.append(place) or 1.0)
    assert [place for _, place in clock.places] == [int(second / 30 * 12) for second in range(30)]
    assert rates == [place for _, place in clock.places]
    assert run.details["train_steps"] == 30
    assert [step for step, _ in run.curves["train_loss"]][-1] == 29


def test_resume_counts_the_time_already_used(tmp_path, monkeypatch):
    first = Clock(monkeypatch)
    with pytest.raises(Stop):
        toy(tmp_path, max_minutes=0.5, prepare=first.prepare, batch=stop_at(batch, 22))
    second = Clock(monkeypatch)
    run, _ = toy(tmp_path, max_minutes=0.5, prepare=second.prepare)
    assert len(first.places) == 22  # the last state holds 20 of them, and their 20 seconds
    assert [place for _, place in second.places] == [int((20 + second) / 30 * 12) for second in range(10)]
    assert run.details["train_steps"] == 30
    assert all(a < b for (a, _), (b, _) in pairwise(run.curves["train_loss"]))


@pytest.mark.parametrize("changes", [{}, {"max_minutes": 0.2}])
def test_a_failure_after_the_last_step_repeats_no_step(tmp_path, monkeypatch, changes):
    """The next process makes no further step either."""
    clock = Clock(monkeypatch)
    first, expected = toy(tmp_path, prepare=clock.prepare, checkpoint_every=7, **changes)
    second = Clock(monkeypatch)
    run, found = toy(tmp_path, prepare=second.prepare, checkpoint_every=7, **changes)
    assert (len(clock.places), second.places) == (12, [])
    assert torch.equal(weights(found), weights(expected))
    assert (run.curves, run.details["train_steps"]) == (first.curves, 12)


def test_with_dropout_a_state_of_another_split_is_refused(tmp_path):
    toy(tmp_path / "with")
    with pytest.raises(UserError, match=r"processes or micro-batches \(a{12}:train:1x1, this run is a{12}:train:1x2\)"):
        toy(tmp_path / "with", accumulate=2)
    toy(tmp_path / "without", training=False)
    toy(tmp_path / "without", training=False, accumulate=2)


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


def test_the_batch_of_a_loss_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(Diverged, match=rf"at step 3 of 12, batch {digest(batch(3))};"):
        toy(tmp_path, loss=lambda batch, step: {"loss": torch.tensor(math.nan if step == 3 else 1.0, requires_grad=True)})


def test_a_full_disk_keeps_the_previous_state(tmp_path):
    """A file size limit stands in for a full disk: the second state cannot be written."""
    whole, expected = toy(tmp_path / "whole")
    pid = os.fork()
    if not pid:
        torch.set_num_threads(1)  # threads of the parent do not exist here
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with (new_run(tmp_path / "full").state / "error").open("w") as said:
                run_until_full(tmp_path / "full", said)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    state = new_run(tmp_path / "full").state
    assert re.fullmatch(r".*train.safetensors: the state after step 8 cannot be written .*", (state / "error").read_text())
    assert sorted(path.name for path in state.iterdir()) == ["curves.jsonl", "error", "train.safetensors"]
    seen = []
    run, found = toy(tmp_path / "full", prepare=seen.append)
    assert seen == list(range(4, 12))
    assert torch.equal(weights(found), weights(expected))
    assert run.curves == whole.curves


def run_until_full(folder, said):
    def limited(step):
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))
        return batch(step)

    try:
        toy(folder, prepare=lambda step: limited(step) and None)
    except UserError as error:
        said.write(str(error))
