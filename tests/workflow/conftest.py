import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINI = Path(__file__).with_name("mini.yaml")


class Workflow:
    """Snakemake as a user runs it: in the checkout, with the results elsewhere."""

    root, mini = ROOT, MINI

    @staticmethod
    def command(study, results: Path, *arguments: str) -> list[str]:
        options = ["--cores", "2", "--config", f"study={study}", f"results={results}"]
        return [sys.executable, "-m", "snakemake", *arguments, *options]

    @classmethod
    def run(cls, study, results: Path, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            cls.command(study, results, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    @staticmethod
    def look(study, results: Path, *mode: str) -> str:
        """Return what a mode of Snakemake that only looks prints, typed without --cores."""
        words = [sys.executable, "-m", "snakemake", *mode, "--config", f"study={study}", f"results={results}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

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
    return Workflow
