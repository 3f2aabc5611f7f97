"""A workflow killed anywhere resumes with the same command and ends with the same tables."""

import random
import shutil
import subprocess

import pytest

from mobilebert.jobs import locks
from mobilebert.jobs.record import read_record


@pytest.fixture(scope="module")
def whole(workflow, tmp_path_factory):
    """Return the results of a workflow that was killed once and completed by the same command.

    `make test-long` compares its records with those of a workflow that was never killed.
    """
    results = tmp_path_factory.mktemp("whole")
    seed = random.randrange(10**6)
    assert workflow.kill_after(random.Random(seed).uniform(2, 8), workflow.mini, results), f"seed {seed}: it ended before"
    run = workflow.run(workflow.mini, results)
    assert run.returncode == 0, f"seed {seed}: " + run.stdout[-3000:] + run.stderr[-3000:]
    return results


@pytest.mark.parametrize("why", ["edited", "forced"])
def test_one_command_completes_what_a_kill_left(workflow, whole, tmp_path, why):
    """The first job to run has a record: of another configuration, or one that Snakemake could not
    note before the kill. The jobs behind it have none. With ancient inputs Snakemake would skip
    them and still exit 0."""
    shutil.copytree(whole, tmp_path / "results")
    behind = {"quantize/mobilebert/sst2", "latency", "report", "track"}
    for key in (*behind, "check"):
        (tmp_path / f"results/mini/{key}/result.json").unlink()
    (tmp_path / "results/mini/check/passed").unlink()
    study, options = workflow.mini, ["--forcerun", f"{tmp_path}/results/mini/finetune/mobilebert/sst2/result.json"]
    if why == "edited":
        study, options = tmp_path / "mini.yaml", []
        study.write_text(workflow.mini.read_text().replace("learning_rate: 1e-3", "learning_rate: 2e-3"))
    made = workflow.scheduled(study, tmp_path / "results", *options)
    assert made == {"finetune/mobilebert/sst2", "check", *behind}


@pytest.mark.parametrize(
    ("deleted", "damaged", "task", "also"),
    [
        ("distill/mobilebert", ["pretrain/ib-bert-large"], "mrpc", {"finetune/mobilebert/mrpc"}),
        ("quantize/mobilebert/sst2", ["distill/mobilebert"], None, {"report", "track", "check"}),
        ("finetune/mobilebert/sst2", [], None, {"report", "track", "check"}),
    ],
)
def test_only_missing_and_damaged_records_are_scheduled(workflow, whole, tmp_path, deleted, damaged, task, also):
    """This includes a missing record behind a current one that is itself behind a job to run."""
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    (results / f"mini/{deleted}/result.json").unlink()
    for key in damaged:
        (results / f"mini/{key}/result.json").write_text("{")
    target = [f"{results}/mini/finetune/mobilebert/{task}/result.json"] if task else []
    assert workflow.scheduled(workflow.mini, results, *target) == {deleted, *damaged, *also}


def test_a_repeated_measurement_reruns_the_views(workflow, whole):
    assert workflow.scheduled(workflow.mini, whole) == set()
    assert workflow.scheduled(workflow.mini, whole, "--forcerun", "latency") == {"latency", "report", "track", "check"}


def test_a_record_that_a_killed_snakemake_did_not_note_is_current(workflow, whole, tmp_path):
    """Jobs of a cluster outlive the command. The folder's name also needs quotes in the shell."""
    import base64

    results = tmp_path / "a student's results"
    shutil.copytree(whole, results)
    (results / "mini/track/result.json").unlink()
    marker = workflow.root / ".snakemake/incomplete" / base64.b64encode(f"{results}/mini/data/result.json".encode()).decode()
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text("{}")
    run = workflow.run(workflow.mini, results, f"{results}/mini/track/result.json", f"{results}/mini/data/result.json")
    marker.unlink(missing_ok=True)
    assert run.returncode == 0, run.stderr
    assert "rule track" in run.stdout + run.stderr
    assert "rule data" not in run.stdout + run.stderr


def test_a_damaged_mlflow_store_fails_and_hides_no_verdict(workflow, whole, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(whole, results)
    (results / "mini/mlflow.db").write_text("no database")
    for file in ("track/result.json", "check/passed", "check/result.json"):
        (results / "mini" / file).unlink()
    run = workflow.run(workflow.mini, results)
    assert run.returncode == 1
    assert "mlflow.db: file is not a database; delete mlflow.db" in run.stdout + run.stderr
    assert (results / "mini/check/passed").exists()
    assert workflow.scheduled(workflow.mini, results) == {"track"}


def test_a_stale_record_says_why(workflow, whole, tmp_path):
    study = tmp_path / "mini.yaml"
    study.write_text(workflow.mini.read_text().replace("learning_rate: 1e-3", "learning_rate: 2e-3"))
    run = workflow.run(study, whole, "--dry-run")
    assert "mobilebert: stale: finetune/mobilebert/sst2: config.learning_rate: 0.002, was 0.001\n" in run.stderr
    assert "mobilebert: stale: quantize/mobilebert/sst2: config.learning_rate: 0.002, was 0.001; input" in run.stderr
    assert "stale: distill" not in run.stderr
    assert "    reason: config.learning_rate: 0.002, was 0.001\n" in run.stdout


def test_a_folder_in_use_is_refused(workflow, whole, tmp_path):
    (whole / "mini/check/passed").unlink()
    with locks.lock(whole / "mini/.lock", "held"):
        run = workflow.run(workflow.mini, whole)
    assert run.returncode == 2
    assert f"{whole}/mini: in use by a live run" in run.stderr


def test_tracking_twice_adds_nothing(workflow, whole):
    import sys

    def track():
        command = [sys.executable, "-m", "mobilebert", "track", "--study", str(workflow.mini), "--results", str(whole)]
        subprocess.run(command, cwd=workflow.root, check=True, capture_output=True)
        return read_record(whole / "mini/track/result.json").metrics["added"]

    track()
    assert track() == 0
