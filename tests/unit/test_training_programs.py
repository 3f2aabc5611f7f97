"""The training programs as a whole: killed at random moments, and run by two processes. `make test-long` kills 50 times."""

import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "long"


def run(name, *arguments):
    command = [sys.executable, str(PROGRAMS / name), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    return found.stdout.splitlines()


def test_teacher_strategies_and_distillation_survive_three_kills_each():
    lines = run("kills.py", "3")
    assert [line.split(" ")[0] for line in lines[1:]] == ["teacher", "AKT", "JKT", "PKT", "distillation"]
    assert all(": 3 kills in " in line for line in lines[1:])


def test_two_processes_learn_what_one_does():
    assert len(run("parallel.py", "2")) == 2


def test_students_that_share_a_teacher_end_as_they_do_alone():
    lines = run("shared.py", "2")[1:]
    assert [line.partition("; ")[0] for line in lines] == ["transfer: 3 students, 2 kills", "distill: 3 students, 2 kills"]
