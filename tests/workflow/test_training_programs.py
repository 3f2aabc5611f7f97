"""Run whole training programs: killed at random moments, and by two processes.

`make test-long` kills each of them 50 times.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[1] / "long"
ARGUMENTS = {
    "kills.py": ["1", "--programs", "PKT", "distillation"],
    "parallel.py": ["1"],
    "shared.py": ["2", "--stages", "transfer"],
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Start all programs at once: each has its own folder and keeps at most one core busy."""
    found, folder = {}, tmp_path_factory.mktemp("programs")
    for name, arguments in ARGUMENTS.items():
        with (folder / name).open("w") as log:
            found[name] = (
                subprocess.Popen([sys.executable, str(PROGRAMS / name), *arguments], stdout=log, stderr=log),
                folder / name,
            )
    yield found
    for program, _ in found.values():
        program.kill()
        program.wait()


def lines_of(started, name):
    program, log = started[name]
    code = program.wait()
    text = log.read_text()
    assert code == 0, text[-3000:]
    return text.splitlines()


def test_transfer_distillation_and_a_state_saved_by_time_survive_a_kill(started):
    lines = lines_of(started, "kills.py")[1:]
    assert [line.split(" ")[0] for line in lines] == ["PKT", "distillation", "by"]
    assert all(": 1 kills in " in line for line in lines[:-1])
    assert lines[-1].startswith("by time: 1 kills, states after steps ")


def test_two_processes_learn_what_one_does(started):
    assert len(lines_of(started, "parallel.py")) == 1


def test_students_that_share_a_teacher_end_as_they_do_alone(started):
    lines = lines_of(started, "shared.py")[1:]
    assert [line.partition("; ")[0] for line in lines] == ["transfer: 3 students, 2 kills"]
