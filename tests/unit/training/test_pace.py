"""When a run saves itself: by a clock that a test moves."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from test_loop import Stop, batch, stop_at, toy, weights

from mobilebert.training import checkpoint, loop
from mobilebert.training.checkpoint import LEAST_SECONDS, SPACING, Pace
from mobilebert.training.distributed import processes


class Clock:
    """Seconds that pass where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(checkpoint, "LEAST_SECONDS", LEAST_SECONDS)  # as it is outside tests
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: self.now)

    def pass_by(self, seconds):
        self.now += seconds


def test_a_state_is_due_after_its_cost_many_times_over(monkeypatch):
    clock = Clock(monkeypatch)
    pace, due = Pace(), []
    for cost in (0.0, 0.01, 2.0):  # 50 times the second is less than LEAST_SECONDS
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
    """The finished steps of each state that a run writes."""
    clock, found, save = Clock(monkeypatch), [], checkpoint.save

    def slow(path, model, optimizer, step, *rest):
        save(path, model, optimizer, step, *rest)
        found.append(step)
        clock.now += save_seconds

    monkeypatch.setattr(checkpoint, "save", slow)
    toy(tmp_path, steps=steps, checkpoint_every=1000, prepare=lambda place: clock.pass_by(step_seconds))
    return found


def test_a_run_saves_itself_every_few_seconds(monkeypatch, tmp_path):
    """A step is asked at its beginning, in its first second: the third second ends in step 4."""
    assert saves_of(monkeypatch, tmp_path, 1.0, 0.0, 12) == [3, 6, 9, 12]


def test_saving_takes_no_more_than_its_share(monkeypatch, tmp_path):
    saves = saves_of(monkeypatch, tmp_path, 1.0, 0.5, 200)
    assert saves[0] == 3
    assert all(0.5 <= (after - before) / SPACING <= 0.54 for before, after in itertools.pairwise(saves))


def test_a_short_run_is_not_saved(monkeypatch, tmp_path):
    assert saves_of(monkeypatch, tmp_path, 0.1, 0.0, 12) == []


def test_a_run_that_saved_itself_by_time_goes_on_to_the_bit(monkeypatch, tmp_path):
    whole, expected = toy(tmp_path / "whole", checkpoint_every=1000)
    clock = Clock(monkeypatch)
    with pytest.raises(Stop):
        toy(tmp_path / "broken", checkpoint_every=1000, prepare=lambda place: clock.pass_by(1.0), batch=stop_at(batch, 10))
    seen = []
    run, found = toy(tmp_path / "broken", checkpoint_every=1000, prepare=lambda place: seen.append(place) or clock.pass_by(0.1))
    assert seen == [9, 10, 11]
    assert torch.equal(weights(found), weights(expected))
    assert run.curves == whole.curves


def test_the_first_of_several_processes_decides(monkeypatch, tmp_path):
    """The second one, whose clock stands still, saves when the first one's number is among the summed losses."""
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
