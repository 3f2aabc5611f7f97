"""`mobilebert state list|prune`: what was saved is named, what nothing reads is removed, what is live or resumable stays."""

import json
import shutil
from pathlib import Path

import pytest
from torch import nn

from mobilebert import jobs, locks, records, state
from mobilebert.__main__ import main
from mobilebert.config import load
from mobilebert.training import checkpoint, optim

MINI = Path(__file__).parents[1] / "workflow" / "mini.yaml"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with a study of its own, in which the study `mini` is known by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflows/config").mkdir(parents=True)
    shutil.copy(MINI, "workflows/config/mini.yaml")
    return tmp_path / "results"


def saved(results, key="pretrain/ib-bert-large", fingerprint=None, study="mini", step=5, name="train"):
    """The state of a run of the mini study, or of one with another fingerprint."""
    known = jobs.build(load(MINI))[key]
    job = jobs.Job(known.stage, known.name, {}, (), fingerprint or known.fingerprint)
    folder = records.Run(job, study, results, {}).state
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"job": job.id, "fingerprint": job.fingerprint, "pid": 1}))
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
    fingerprint = jobs.build(load(MINI))["pretrain/ib-bert-large"].fingerprint
    assert f"{fingerprint[:12]}: step 5 of 40, " in found["pretrain/ib-bert-large resumable"]


def test_prune_removes_what_no_job_reads_and_says_so(results, capsys):
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
    assert "workflows/config has no study elsewhere" in lines[0]
    assert lines[-1] == f"{size:,} bytes freed"
    again = printed(capsys, "prune")  # what was live has ended
    assert not live.exists()
    assert [line.split(" ")[0] for line in again[:2]] == ["kept", "removed"]
    assert printed(capsys, "prune") == [lines[0], "0 bytes freed"]


def test_a_state_that_is_damaged_is_listed_still(results, capsys):
    folder = saved(results)
    (folder / "train.safetensors").write_bytes(b"\xff" * 20)
    assert "no step saved" in printed(capsys, "list")[0]
    (folder / "run.json").write_text("{")
    assert printed(capsys, "list") == []


def test_the_training_that_saved_last_is_named(results):
    saved(results, key="finetune/mobilebert/sst2", name="seed0", step=30)
    saved(results, key="finetune/mobilebert/sst2", name="seed1", step=10)
    assert [item.progress for item in state.states(results)] == ["step 10 of 40"]


def test_no_results_folder_is_an_error(results, capsys):
    assert main(["state", "list"]) == 2
    assert capsys.readouterr().err == "mobilebert: --results: no folder results\n"


def test_a_state_left_behind_by_a_finished_run_goes_with_the_next_call(results):
    """A kill between the record and the removal of the state."""
    fingerprint = jobs.build(load(MINI))["pretrain/ib-bert-large"].fingerprint
    alone = jobs.Job("pretrain", "ib-bert-large", {}, (), fingerprint)
    assert records.execute(alone, "mini", results, {}, lambda run: None).status == "ok"
    folder = saved(results)
    records.execute(alone, "mini", results, {}, lambda run: None)
    assert not folder.exists()
