"""Steps replayed from recorded graphs learn the same as eager steps.

On the CPU a recorder stands in for CUDA and repeats the same operations on the same memory.
"""

import contextlib
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from graph_workloads import (
    KINDS,
    LAYERS,
    LENGTH,
    STEPS,
    STUDENT,
    TEACHER,
    agree,
    batch,
    model,
    run_in,
    stopped,
    trained,
    weights,
    workload,
)
from torch import nn

from mobilebert.pretraining import objective
from mobilebert.stages import transfer
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.training import loop
from mobilebert.training.accelerated import cuda_graphs
from mobilebert.training.accelerated.cuda_graphs import WARM_UP
from mobilebert.training.batches import digest
from mobilebert.training.distributed.processes import World
from mobilebert.training.loop import train
from mobilebert.util.errors import Diverged, UserError

torch.set_num_threads(1)


@pytest.mark.parametrize(("kind", "optimizer"), KINDS.items())
def test_graphs_learn_the_same_as_eager_steps(tmp_path, recorder, kind, optimizer):
    """In float64: an update may divide by mere rounding, so float32 toys soon drift apart."""
    wide = {"optimizer": optimizer, "dtype": torch.float64}
    agree(trained(tmp_path / "graphs", kind, graph=True, **wide), trained(tmp_path / "steps", kind, **wide))
    stages = LAYERS if kind in ("pkt", "frozen") else 1
    assert recorder.log.count("record") == 2 * 2 * stages  # gradients and update, with a mask and without one
    assert recorder.log.count("warm") == 2 * 2 * stages * WARM_UP
    assert recorder.log.count("warm") + recorder.log.count("replay") == 2 * STEPS


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dropout", {"precision": "bf16", "steps": 12}),
        ("pkt", {}),
        ("distill", {"accumulate": 2, "steps": 12}),
    ],
)
def test_replayed_steps_equal_warm_up_steps_to_the_bit(tmp_path, recorder, monkeypatch, kind, changes):
    """After a kill a process warms up with other steps than before; the result is the same."""
    run, found, _ = trained(tmp_path / "graphs", kind, graph=True, **changes)
    assert "replay" in recorder.log
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graphs, "WARM_UP", STEPS)
        recorder.log.clear()
        whole, expected, _ = trained(tmp_path / "steps", kind, graph=True, **changes)
        assert set(recorder.log) == {"warm"}
    assert torch.equal(found, expected)
    assert run.curves == whole.curves
    stops = stopped([4, 9])  # before the first state, and between replays
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken", kind, graph=True, **changes, batch=stops)
    run, found, _ = trained(tmp_path / "broken", kind, graph=True, **changes)
    assert torch.equal(found, expected)
    assert run.curves == whole.curves


def test_micro_batches_from_graphs_learn_the_same_as_eager_steps(tmp_path, recorder):
    wide = {"optimizer": "lamb", "dtype": torch.float64, "accumulate": 3}
    agree(trained(tmp_path / "graphs", "distill", graph=True, **wide), trained(tmp_path / "steps", "distill", **wide))


def test_a_training_resumes_with_or_without_graphs(tmp_path, recorder):
    wide = {"optimizer": "lamb", "dtype": torch.float64}
    expected = trained(tmp_path / "whole", "pkt", **wide)

    for last, graph in ((9, True), (16, False)):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken", "pkt", graph=graph, batch=stopped([last]), **wide)
    agree(trained(tmp_path / "broken", "pkt", graph=True, **wide), expected)


def test_a_rare_shape_is_not_recorded(tmp_path, recorder):
    """It does not disturb the others either: three batches of two rows among those of four."""

    def some_short(step):
        found = batch(1 + 2 * step)
        if step not in (2, 9, 15):
            return found
        last = int((found["masked_positions"] < 2 * LENGTH).sum())
        return {key: value[: last if key.startswith("masked_") else 2] for key, value in found.items()}

    wide = {"optimizer": "lamb", "dtype": torch.float64, "batch": some_short}
    agree(trained(tmp_path / "graphs", "distill", graph=True, **wide), trained(tmp_path / "steps", "distill", **wide))
    assert recorder.log.count("record") == 2
    assert recorder.log.count("warm") == 2 * (WARM_UP + 3)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
def test_a_replayed_step_that_is_not_finite_is_named_and_changes_no_weight(tmp_path, recorder, graph, poisoned):
    """The error names the unpadded batch by its hash, and the last state, as without graphs."""
    student, made, task = workload("pretrain")
    seen, last = {}, 15
    weight = student.mobilebert.embeddings.word_embeddings.weight
    factor = nn.Parameter(torch.zeros(()))  # the value of its root is finite, the slope is not
    made.add_param_group({"params": [factor]})

    def loss(batch, step):
        found = objective.loss(student, batch)
        bad = (batch["input_ids"] == 0).any().float()  # 1 in the one batch that has a [PAD]
        scale = 1 + (1 - bad).log() * 0 if poisoned == "loss" else 1
        extra = torch.where(bad > 0, factor, factor + 1).sqrt() * 0 if poisoned == "gradient" else 0
        return found | {"loss": found["loss"] * scale + extra}

    def batch_at(step):
        found = batch(step)
        if step == last:
            found["input_ids"][0, 0] = 0
        return found

    def prepare(step):
        seen[step] = weight.detach().clone()

    task = replace(task, loss=loss, batch=batch_at, prepare=prepare, graph=graph)
    run = run_in(tmp_path)
    with pytest.raises(Diverged) as caught:
        train(run, student, made, task)
    name = "train.safetensors"
    assert re.fullmatch(
        rf"loss .*, gradient norm .* at step {last} of {STEPS}, batch {digest(batch_at(last))}; "
        rf"last good state: {last} steps, {run.state / name}",
        str(caught.value),
    )
    assert "nan" in str(caught.value)
    assert torch.equal(weight, seen[last])
    assert torch.isfinite(weights(student)).all()


def test_rates_are_numbers_again_at_the_end(tmp_path, recorder):
    student, made, task = workload("pkt", graph=True)
    train(run_in(tmp_path), student, made, task)
    assert {group["lr"] for group in made.param_groups} == {0.02}


def test_the_transfer_program_tells_the_loop_its_masked_positions_and_stages(monkeypatch):
    """A row masks at most 15 % of 512 tokens; stages are the depths of progressive transfer."""
    study = load_study("paper")
    study = study.model_copy(update={"transfer": study.transfer.model_copy(update={"graph": True})})
    job = build_graph(study)["transfer/mobilebert"]
    job = replace(job, config={**job.config, "steps": STEPS})
    seen, run = [], SimpleNamespace(job=job, settings=job.settings, details={})
    monkeypatch.setattr(objective, "batches", lambda *arguments: None)
    monkeypatch.setattr(objective, "new_model", lambda architecture: model(1, **STUDENT))
    monkeypatch.setattr(transfer, "corpus_of", lambda run: None)
    monkeypatch.setattr(transfer, "device_of", lambda study: "cpu")
    monkeypatch.setattr(transfer, "teacher_of", lambda *arguments: model(2, **TEACHER))
    monkeypatch.setattr(transfer, "jobs_sharing_teacher", lambda run, study: contextlib.nullcontext([]))
    monkeypatch.setattr(
        transfer, "train_together", lambda run, others, prepare, device: seen.append(prepare(run, None)[2]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        transfer.main(run, study)
    assert (seen[0].graph, seen[0].predictions) == (True, 77)
    assert [seen[0].stage(place) for place in (0, 9, 10, 19)] == [1, 1, 2, 2]


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "world", lambda: World(0, 2))
    with pytest.raises(UserError, match=r"^graph: true works in one process only, but torchrun started 2; set graph: false$"):
        trained(tmp_path, "pretrain", graph=True)
