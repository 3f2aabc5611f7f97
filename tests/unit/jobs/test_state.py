"""`mobilebert state list|prune` names saved states and removes those that no job reads.

Live and resumable states are kept.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mobilebert.cli.main import main
from mobilebert.jobs import locks, saved_state
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.execute import execute_job
from mobilebert.study.graph import build_graph
from mobilebert.study.job import Job
from mobilebert.study.load import load_study
from mobilebert.training import checkpoint, optim
from mobilebert.util.errors import Diverged

MINI = Path(__file__).parents[2] / "workflow" / "mini.yaml"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Return a results folder with the mini study's file; the study `elsewhere` has no file."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(MINI, tmp_path / "mini.yaml")
    return tmp_path / "results"


def saved(results, key="pretrain/ib-bert-large", fingerprint=None, study="mini", step=5, name="train", file=None):
    """Write the saved state of a job of the mini study, or of one with another fingerprint."""
    known = build_graph(load_study(MINI))[key]
    job = Job(known.stage, known.name, {}, (), fingerprint or known.fingerprint)
    folder = JobContext(job, study, results, {}).state
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"job": job.id, "fingerprint": job.fingerprint, "pid": 1, "study": str(file or results.parent / f"{study}.yaml")}
    (folder / "run.json").write_text(json.dumps(facts))
    model = nn.Linear(50, 50)
    optimizer = optim.make(model, "adamw", 0.1, 0.0)
    checkpoint.save(folder / f"{name}.safetensors", model, optimizer, step, f"{job.fingerprint}:{name}", 40, 1.5)
    return folder


def printed(capsys, *arguments):
    assert main(["state", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_list_names_each_state(results, capsys):
    saved(results)
    stale = saved(results, fingerprint="0" * 64, step=35)
    (stale / "more").write_bytes(bytes(3 * 2**20))
    saved(results, key="distill/mobilebert", study="elsewhere")
    with locks.lock(locks.lock_of(saved(results, key="transfer/mobilebert")), "held"):
        lines = printed(capsys, "list")
    found = {line.split(" ")[1] + " " + line.rpartition(" ")[2]: line for line in lines}
    assert set(found) == {
        "distill/mobilebert unknown",
        "pretrain/ib-bert-large resumable",
        "pretrain/ib-bert-large stale",
        "transfer/mobilebert live",
    }
    assert (
        found["pretrain/ib-bert-large stale"]
        == "mini: pretrain/ib-bert-large 000000000000: step 35 of 40, 3.0 MiB, 0.0 h old, stale"
    )
    fingerprint = build_graph(load_study(MINI))["pretrain/ib-bert-large"].fingerprint
    assert f"{fingerprint[:12]}: step 5 of 40, " in found["pretrain/ib-bert-large resumable"]


def test_a_job_of_several_trials_says_how_many_have_ended(results, capsys):
    folder = saved(results)
    (folder / "runs").mkdir()
    (folder / "runs/a.json").write_text("{}")
    assert ": 1 run ended, step 5 of 40, " in printed(capsys, "list")[0]
    (folder / "runs/b.json").write_text("{}")
    (folder / "c").mkdir()
    (folder / "train.safetensors").rename(folder / "c/c.safetensors")  # a trial has a folder of its own
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")  # newer, but not a saved state
    assert ": 2 runs ended, step 5 of 40, " in printed(capsys, "list")[0]
    (folder / "c/c.safetensors").unlink()
    assert ": 2 runs ended, 0.0 MiB, " in printed(capsys, "list")[0]


def test_prune_removes_and_prints_states_that_no_job_reads(results, capsys):
    kept = [saved(results), saved(results, key="distill/mobilebert", study="elsewhere")]
    live, stale = saved(results, fingerprint="1" * 64), saved(results, fingerprint="2" * 64)
    size = sum(path.stat().st_size for path in stale.iterdir())
    before = {path: path.read_bytes() for folder in kept for path in folder.iterdir()}
    with locks.lock(locks.lock_of(live), "held"):
        lines = printed(capsys, "prune", "--results", "results")
    assert not stale.exists()
    assert live.exists()
    assert {path: path.read_bytes() for folder in kept for path in folder.iterdir()} == before
    assert [line.split(" ")[0] for line in lines] == ["kept", "removed", f"{size:,}"]
    assert "222222222222" in lines[1]
    assert lines[0].endswith("unknown: the study that it belongs to cannot be read")
    assert lines[-1] == f"{size:,} bytes freed"
    again = printed(capsys, "prune")  # the live job has ended
    assert not live.exists()
    assert [line.split(" ")[0] for line in again[:2]] == ["kept", "removed"]
    assert printed(capsys, "prune") == [lines[0], "0 bytes freed"]


def test_a_state_that_is_damaged_is_listed_still(results, capsys):
    folder = saved(results)
    (folder / "train.safetensors").write_bytes(b"\xff" * 20)
    assert "no step saved" in printed(capsys, "list")[0]
    for break_it in (lambda path: path.write_text("{"), lambda path: path.write_text("[]"), Path.unlink):  # killed at its start
        break_it(folder / "run.json")
        line = printed(capsys, "list")[0]
        assert line.startswith(f"mini: pretrain-ib-bert-large {folder.name[-16:][:12]}: no step saved")
        assert line.endswith("unknown")
        assert printed(capsys, "prune")[0].startswith("kept ")
    with locks.lock(locks.lock_of(folder), "held"):
        assert printed(capsys, "list")[0].endswith("live")


def test_a_state_is_judged_by_the_file_of_its_own_study(results, capsys, tmp_path):
    """Two files of one name share a results folder."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mini.yaml").write_text(MINI.read_text().replace("steps: 40", "steps: 41"))
    job = build_graph(load_study(tmp_path / "other/mini.yaml"))["pretrain/ib-bert-large"]
    assert job.fingerprint != build_graph(load_study(MINI))[job.id].fingerprint
    folder = saved(results, fingerprint=job.fingerprint, file=tmp_path / "other/mini.yaml")
    assert printed(capsys, "prune") == ["0 bytes freed"]
    assert folder.exists()
    (tmp_path / "other/mini.yaml").unlink()
    assert "kept " in printed(capsys, "prune")[0]


def test_a_state_names_the_file_of_its_study(results):
    graph = build_graph(load_study(results.parent / "mini.yaml"))
    seen = []

    def stage(run):
        seen.append(json.loads((run.state / "run.json").read_text()))

    execute_job(graph["data"], "mini", results, graph, stage)
    assert seen[0]["study"] == str((results.parent / "mini.yaml").resolve())


def test_a_state_whose_record_says_diverged_is_not_resumable(results, capsys):
    graph = build_graph(load_study(MINI))
    key = "pretrain/ib-bert-large"
    folder = saved(results)

    def diverge(run):
        raise Diverged("loss nan at step 7")

    alone = Job(*key.split("/"), {}, (), graph[key].fingerprint)
    graph[key] = alone
    graph.study_file = str(results.parent / "mini.yaml")
    assert execute_job(alone, "mini", results, graph, diverge).status == "diverged"
    assert printed(capsys, "list")[0].endswith(" diverged")
    assert printed(capsys, "prune")[0].startswith("removed ")
    assert not folder.exists()


def test_a_state_that_was_locked_meanwhile_does_not_stop_prune(results, capsys, monkeypatch):
    taken, stale = saved(results, fingerprint="1" * 64), saved(results, fingerprint="2" * 64)
    monkeypatch.setattr(locks, "is_live", lambda folder: False)
    with locks.lock(locks.lock_of(taken), "held"):
        lines = printed(capsys, "prune")
    assert lines[0].startswith("kept ")
    assert lines[0].endswith("a process makes it now")
    assert lines[1].startswith("removed ")
    assert taken.exists()
    assert not stale.exists()


def test_the_training_that_saved_last_is_named(results):
    saved(results, key="finetune/mobilebert/sst2", name="seed0", step=30)
    saved(results, key="finetune/mobilebert/sst2", name="seed1", step=10)
    assert [item.progress for item in saved_state.states(results)] == ["step 10 of 40"]


def test_no_results_folder_is_an_error(results, capsys):
    assert main(["state", "list"]) == 2
    assert capsys.readouterr().err == "mobilebert: --results: no folder results\n"


def test_a_state_left_by_a_finished_job_is_removed_by_the_next_call(results):
    """The process was killed between writing the record and removing the state."""
    fingerprint = build_graph(load_study(MINI))["pretrain/ib-bert-large"].fingerprint
    alone = Job("pretrain", "ib-bert-large", {}, (), fingerprint)
    assert execute_job(alone, "mini", results, {}, lambda run: None).status == "ok"
    folder = saved(results)
    execute_job(alone, "mini", results, {}, lambda run: None)
    assert not folder.exists()
