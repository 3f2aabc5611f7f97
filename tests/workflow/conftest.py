import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from warm import Warm

ROOT = Path(__file__).parents[2]
MINI = Path(__file__).with_name("mini.yaml")
# One process runs all commands: each takes half a second there, and three in a process of its own.
COMMANDS = """
import contextlib, io, json, sys
from snakemake.cli import main
ended = []
sys.executable, commands = json.load(sys.stdin)  # what a rule starts is part of Snakemake's notes
for words in commands:
    sys.argv, out, err = ["snakemake", *words], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    ended.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""


class Ended(NamedTuple):
    """How a command of Snakemake ended."""

    code: int
    out: str
    err: str


class Workflow:
    """Snakemake in the checkout, with the results elsewhere."""

    root, mini = ROOT, MINI
    _warm: ClassVar[list[Warm]] = []  # none or one

    @staticmethod
    def words(study, results: Path, *arguments: str) -> list[str]:
        """Return the arguments of Snakemake that run a study."""
        return [*arguments, "--cores", "2", "--config", f"study={study}", f"results={results}"]

    @classmethod
    def run(cls, study, results: Path, *arguments: str) -> subprocess.CompletedProcess:
        return cls.snakemake(*cls.words(study, results, *arguments))

    @classmethod
    def snakemake(cls, *words: str) -> subprocess.CompletedProcess:
        """Run a command as a user does, but in forks of a process that has imported torch."""
        if not cls._warm:
            cls._warm.append(Warm())
        command = [str(cls._warm[0].interpreter), "-m", "snakemake", *words]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    @classmethod
    def close(cls) -> None:
        """End the process that `snakemake` started."""
        while cls._warm:
            cls._warm.pop().close()

    @classmethod
    def kill_after(cls, seconds: float, study, results: Path) -> bool:
        """Kill all processes of a run after some seconds; return False if it had ended."""
        command = [sys.executable, "-m", "snakemake", *cls.words(study, results)]
        silent = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=ROOT, stdout=silent, stderr=silent, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        return False

    @classmethod
    def look(cls, commands: dict[str, list[str]], cwd: Path = ROOT, path: str = "", modules: str = "") -> dict[str, Ended]:
        """Return how commands of Snakemake end that run little or nothing.

        path: a folder of programs that are found before others.
        modules: a folder of Python modules that are found before others.
        """
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "PYTHONPATH": f"{modules}:{ROOT}"}
        python = cls._warm[0].interpreter if cls._warm else sys.executable  # as `run`
        words = json.dumps([str(python), [*commands.values()]])
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS], input=words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return {name: Ended(*ended) for name, ended in zip(commands, json.loads(done.stdout), strict=True)}

    @classmethod
    def scheduled(cls, study, results: Path, *targets: str) -> set[str]:
        """Return the ids of the jobs that a dry run schedules."""
        found = cls.run(study, results, "--dry-run", *targets)
        assert found.returncode == 0, found.stderr
        name = Path(study).stem
        made = re.findall(
            rf"output: {re.escape(str(results))}/{name}/(\S+?)/(?:result\.json|passed)", found.stdout + found.stderr
        )
        return set(made)


@pytest.fixture(scope="session")
def workflow():
    yield Workflow
    Workflow.close()
