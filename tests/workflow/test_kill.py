"""A run killed anywhere goes on with the same command and ends with the same tables."""

import os
import random
import signal
import subprocess
import time

import pytest

from mobilebert import locks, records


@pytest.fixture(scope="module")
def whole(workflow, tmp_path_factory):
    results = tmp_path_factory.mktemp("whole")
    run = workflow.run(workflow.mini, results)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return results


def metrics(results):
    """What the tables are made of; times are no part of it."""
    found = {}
    for file in sorted((results / "mini").rglob("result.json")):
        record = records.read(file)
        if "mlartifacts" not in file.parts and record.stage not in ("latency", "track", "report", "check"):
            found[record.id] = (record.fingerprint, record.metrics, record.samples, record.curves)
    return found


def test_killed_and_continued(workflow, whole, tmp_path):
    """SIGKILL of the whole process group, three times, at moments drawn anew each time."""
    results = tmp_path / "killed"
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(
            workflow.command(workflow.mini, results),
            cwd=workflow.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moments.uniform(3, 15))
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    run = workflow.run(workflow.mini, results)
    assert run.returncode == 0, f"seed {seed}: " + run.stdout[-3000:] + run.stderr[-3000:]
    assert kills, f"seed {seed}: the run ended before it was killed"
    assert metrics(results) == metrics(whole), f"seed {seed}"


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
        return records.read(whole / "mini/track/result.json").metrics["added"]

    track()
    assert track() == 0
