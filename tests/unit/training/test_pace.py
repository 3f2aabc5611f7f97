"""When a training saves its state, by a clock that the test moves."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from toy_training import Stop, batch, stop_at, toy, weights

from mobilebert.training import checkpoint, loop
from mobilebert.training.checkpoint import LEAST_SECONDS, SPACING, Pace
from mobilebert.training.distributed import processes


class Clock:
    """A clock that advances only if a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(checkpoint, "LEAST_SECONDS", LEAST_SECONDS)  # as outside tests
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: self.now)

    def pass_by(self, seconds):
        self.now += seconds


def test_a_state_is_due_after_its_cost_many_times_over(monkeypatch):
    clock = Clock(monkeypatch)
    pace, due = Pace(), []
    for cost in (0.0, 0.01, 2.0):  # 50 times the second cost is less than LEAST_SECONDS
        clock.now += LEAST_SECONDS - 0.01
        due.append(pace.is_due())
        clock.now += 0.02
        due.append(pace.is_due())
        with pace.saving():
            clock.now += cost
    assert due == [False, True] * 3
    clock.now += 2.0 * SPACING - 0.01
    assert not pace.is_due()
    clock.now += 0.02
    assert pace.is_due()


def saves_of(monkeypatch, tmp_path, step_seconds, save_seconds, steps):
    """Return the number of finished steps in each state that a training saves."""
    clock, found, save = Clock(monkeypatch), [], checkpoint.save

    def slow(path, model, optimizer, step, *rest):
        save(path, model, optimizer, step, *rest)
        found.append(step)
        clock.now += save_seconds

    monkeypatch.setattr(checkpoint, "save", slow)
    toy(tmp_path, steps=steps, checkpoint_every=1000, prepare=lambda place: clock.pass_by(step_seconds))
    return found


def test_a_training_saves_its_state_every_few_seconds(monkeypatch, tmp_path):
    """The clock is read at the start of a step, so the third second ends in step 4."""
    assert saves_of(monkeypatch, tmp_path, 1.0, 0.0, 12) == [3, 6, 9, 12]


def test_saving_takes_no_more_than_its_share(monkeypatch, tmp_path):
    saves = saves_of(monkeypatch, tmp_path, 1.0, 0.5, 200)
    assert saves[0] == 3
    assert all(0.5 <= (after - before) / SPACING <= 0.54 for before, after in itertools.pairwise(saves))


def test_a_short_training_saves_no_state(monkeypatch, tmp_path):
    assert saves_of(monkeypatch, tmp_path, 0.1, 0.0, 12) == []


def test_resume_from_a_state_saved_by_time_gives_the_same_weights(monkeypatch, tmp_path):
    whole, expected = toy(tmp_path / "whole", checkpoint_every=1000)
    clock = Clock(monkeypatch)
    with pytest.raises(Stop):
        toy(tmp_path / "broken", checkpoint_every=1000, prepare=lambda place: clock.pass_by(1.0), batch=stop_at(batch, 10))
    seen = []
    run, found = toy(tmp_path / "broken", checkpoint_every=1000, prepare=lambda place: seen.append(place) or clock.pass_by(0.1))
    assert seen == [9, 10, 11]
    assert torch.equal(weights(found), weights(expected))
    assert run.curves == whole.curves


def test_the_first_of_several_processes_decides_when_to_save(monkeypatch, tmp_path):
    """The second process, whose clock stands still, saves when the first one says so. It sends
    this word as a number among the summed losses."""
    said, saved = iter([0.0, 0.0, 1.0, 0.0, 1.0, 0.0]), []

    class Second(processes.World):
        def sum(self, tensors):
            tensors[0][-1] += next(said)

        def same(self, *values):
            return True

    def gathered(shards, optimizer):
        saved.append(places[-1])
        return contextlib.nullcontext()

    def half(step):
        return {key: value[2:] for key, value in batch(step).items()} | {"whole": torch.tensor([4, 0, 0])}

    places, clock = [], Clock(monkeypatch)
    monkeypatch.setattr(loop, "world", lambda: Second(1, 2))
    monkeypatch.setattr(loop.Shards, "gathered", gathered)
    for name in ("reduce", "broadcast"):
        monkeypatch.setattr(dist, name, lambda *_: None)
    toy(tmp_path, steps=6, checkpoint_every=1000, batch=half, prepare=lambda place: places.append(place) or clock.pass_by(0.1))
    assert saved == [2, 4]
