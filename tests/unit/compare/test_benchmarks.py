"""`mobilebert compare` reads files that pytest-benchmark wrote from interleaved rounds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobilebert.cli.main import main

CONFTEST = Path(__file__).parents[2] / "bench/conftest.py"
TOY = """
import numpy as np

def test_two_sums(rounds):
    ours, theirs = np.ones(200_000), np.ones(2_000_000)
    samples, _ = rounds.run({"theirs": lambda _: theirs.cumsum(), "ours": lambda _: ours.cumsum()}, 5)
    rounds.judge(samples, "theirs", "ours", 2.0)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the file of a benchmark that ran."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copy(CONFTEST, folder)
    (folder / "test_toy.py").write_text(TOY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=one.json", "test_toy.py"]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}  # xdist disables benchmarks
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "one.json"


def changed(written, tmp_path, change):
    content = json.loads(written.read_text())
    change(content["benchmarks"][0]["extra_info"])
    path = tmp_path / "two.json"
    path.write_text(json.dumps(content))
    return path


def compared(base, new, capsys):
    assert main(["compare", str(base), str(new), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    (metric,) = found["metrics"]
    return metric


def test_the_values_are_the_ratios_of_peers_in_each_round(written, tmp_path, capsys):
    def set_times(extra):
        extra["samples"] = {"theirs": [4.0, 6.0, 9.0], "ours": [2.0, 2.0, 3.0]}

    metric = compared(written, changed(written, tmp_path, set_times), capsys)
    assert (metric["job"], metric["metric"]) == ("test_toy.py::test_two_sums", "theirs / ours:speed")
    assert metric["new"]["values"] == [2.0, 3.0, 3.0]
    assert len(metric["base"]["values"]) == 5
    assert min(metric["base"]["values"]) > 2


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (0.5, "worse"), (2.0, "better")])
def test_a_ratio_that_falls_is_worse_whatever_the_machines_speed(written, tmp_path, capsys, factor, verdict):
    def slow(extra):
        samples = extra["samples"]
        samples["theirs"] = [8 * factor * seconds for seconds in (5.0, 5.1, 4.9, 5.0, 5.1)]
        samples["ours"] = [8.0] * 5

    def steady(extra):
        extra["samples"] = {"theirs": [5.0, 5.1, 4.9, 5.0, 5.1], "ours": [1.0] * 5}

    base = changed(written, tmp_path, steady).rename(tmp_path / "base.json")
    assert compared(base, changed(written, tmp_path, slow), capsys)["verdict"] == verdict


def test_times_that_are_none_and_tests_of_one_name_do_not_count(written, tmp_path, capsys):
    def odd(extra):
        extra["samples"] = {"theirs": [-4.0, 6.0, 9.0], "ours": [2.0, 2.0, 0.0]}

    path = changed(written, tmp_path, odd)
    assert compared(written, path, capsys)["new"]["values"] == [3.0]
    content = json.loads(path.read_text())
    content["benchmarks"] *= 2
    path.write_text(json.dumps(content))
    assert main(["compare", str(written), str(path)]) == 2
    assert "two benchmarks are 'test_toy.py::test_two_sums'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"machine_info": {}, "benchmarks": []}, "holds no times of peers; make one on an idle machine: make bench"),
        ({"machine_info": {}, "benchmarks": [{}]}, "not a file of pytest-benchmark: benchmarks.0.fullname: "),
        ({"machine_info": {}, "benchmarks": 3}, "not a file of pytest-benchmark: benchmarks: "),
    ],
)
def test_a_file_without_ratios_is_refused_in_one_line(written, tmp_path, capsys, content, message):
    (tmp_path / "bad.json").write_text(json.dumps(content))
    assert main(["compare", str(written), str(tmp_path / "bad.json")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mobilebert: {tmp_path}/bad.json: {message}")
    assert err.count("\n") == 1
