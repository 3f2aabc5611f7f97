"""A training that was stopped anywhere resumes to the same weights and curves."""

import json
import os
import re
import resource
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_training import Clock, Stop, batch, new_run, stop_at, toy, weights

from mobilebert.util.errors import UserError

torch.set_num_threads(1)


def on_disk(run):
    return [json.loads(line) for line in (run.state / "curves.jsonl").read_text().splitlines()]


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
