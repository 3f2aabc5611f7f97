"""The Slurm profile on a one-node Slurm: jobs are requeued and cancelled while they train.

The workflow must still complete.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from mobilebert.jobs.record import read_record

START = Path(__file__).parents[1] / "slurm/start.sh"
STEPS = 400
WAIT = 240  # seconds: a bound for waiting, not a measurement


def until(what, condition):
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"waited for {what}")


def command(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture(scope="module")
def slurm():
    if "MOBILEBERT_SLURM" not in os.environ:
        pytest.skip("six minutes: make test-slurm runs it")
    if missing := [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=SEARCH)]:
        pytest.skip(f"no Slurm: {', '.join(missing)} not installed (apt install slurm-wlm munge)")
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("no Slurm: snakemake-executor-plugin-slurm not installed")
    if os.getuid() or Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("the test's Slurm needs root, and a machine without a Slurm of its own")
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        started = subprocess.run([START, folder], env={**os.environ, "PATH": SEARCH}, capture_output=True, text=True, check=False)
        try:
            assert started.returncode == 0, started.stderr
            yield Path(folder)
        finally:
            subprocess.run(["scancel", "--user", "root"], check=False, timeout=30)
            subprocess.run([START, folder, "stop"], check=True, timeout=30)
            time.sleep(1)


SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture(scope="module")
def study(workflow, tmp_path_factory):
    content = yaml.safe_load(workflow.mini.read_text())
    content["pretrain"] |= {"steps": STEPS, "checkpoint_every": 20}
    file = tmp_path_factory.mktemp("study") / "queued.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def submit(workflow, slurm, study, tmp_path_factory):
    """Return a function that starts Snakemake with the profile, for one record of the study."""
    results = tmp_path_factory.mktemp("results")

    def start(key, *options):
        words = [sys.executable, "-m", "snakemake", "--workflow-profile", "workflows/profiles/slurm", *options]
        # There is no accounting data base to ask for states and accounts, and no reason to wait 40
        # s for the first answer.
        words += ["--slurm-status-command", "squeue", "--slurm-no-account", "--slurm-init-seconds-before-status-checks", "2"]
        words += ["--slurm-logdir", str(results / "slurm"), "--config", f"study={study}", f"results={results}"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        log = (results / "snakemake.log").open("w")
        target = str(results / f"queued/{key}/result.json")
        return subprocess.Popen([*words, "--", target], cwd=workflow.root, env=environment, stdout=log, stderr=log)

    start.results = results
    return start


def running(name):
    """Return the id of the running job that Snakemake submitted for a rule, or None."""
    lines = command("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
    return next((line.split()[0] for line in lines if f"rule_{name}" in line), None)


def test_a_timing_gets_the_memory_that_the_study_of_all_engines_needs():
    folder = Path(__file__).parents[2] / "workflows"
    (needed_gb,) = re.findall(r"(\d+) GB of memory", (folder / "config/engines.yaml").read_text())
    profile = yaml.safe_load((folder / "profiles/slurm/config.yaml").read_text())
    assert profile["set-resources"]["latency"]["mem_mb"] > 1024 * int(needed_gb)


@pytest.mark.slow
def test_jobs_carry_the_profiles_resources(submit):
    run = submit("data")
    job = until("the data job", lambda: running("data"))
    shown = command("scontrol", "show", "job", job)
    assert "MinMemoryNode=16000M" in shown
    assert "NumCPUs=8" in shown
    assert "Requeue=1" in shown
    assert run.wait(WAIT) == 0, (submit.results / "snakemake.log").read_text()[-3000:]
    assert read_record(submit.results / "queued/data/result.json").status == "ok"


@pytest.mark.slow
def test_requeued_and_cancelled_jobs_go_on(submit, workflow):
    """Pre-emption does the same: the job goes back into the queue once, and is cancelled once."""
    log = submit.results / "queued/logs/pretrain/ib-bert-large.log"

    def saved():
        return next((submit.results / "queued/.state").glob("pretrain-*/train.safetensors"), None)

    def first_step():
        """Return the step at which the process that writes this log began, or None."""
        found = re.search(rf"(\d+)/{STEPS} ", log.read_text()) if log.exists() else None
        return int(found.group(1)) if found else None

    run = submit("pretrain/ib-bert-large", "--set-resources", "pretrain:gpu=1", "pretrain:mem_mb=1000")
    job = until("the job", lambda: running("pretrain"))
    assert re.search(r"TresPerJob=gres:gpu:1", command("scontrol", "show", "job", job))
    until("a checkpoint", saved)
    command("scontrol", "requeue", job)
    until("the job's end", lambda: not running("pretrain"))
    command("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait two minutes
    assert until("the same job again", lambda: running("pretrain")) == job
    requeued = until("its first step", first_step)
    assert requeued >= 20
    until("a later checkpoint", lambda: saved() and saved().stat().st_mtime > log.stat().st_ctime - 1 and first_step())
    command("scancel", job)
    assert run.wait(WAIT) == 0, (submit.results / "snakemake.log").read_text()[-3000:]
    assert first_step() >= requeued
    record = read_record(submit.results / "queued/pretrain/ib-bert-large/result.json")
    assert record.status == "ok"
    steps = [step for step, _ in record.curves["train_loss"]]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, STEPS - 1)
