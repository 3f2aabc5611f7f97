"""Run a study with other seeds: each seed is a study of its own, `<study>-seed<N>`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from mobilebert.study import file as study_file
from mobilebert.study.load import load_study
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError
from mobilebert.util.files import write_atomically


def name_of(study: Study, seed: int) -> str:
    """Return the name of a seed's study, which is its results folder."""
    return f"{study.name}-seed{seed}"


def folders(study: Study, results: Path, seeds: Iterable[int] | None) -> list[Path]:
    """Return the results folders of seeds, or of all that are there if `seeds` is None."""
    if seeds is not None:
        return [results / name_of(study, seed) for seed in seeds]
    pattern = re.compile(rf"{re.escape(study.name)}-seed(\d+)")
    found = {int(match[1]): path for path in results.glob("*") if (match := pattern.fullmatch(path.name)) and path.is_dir()}
    return [found[seed] for seed in sorted(found)]


def seeded(study: Study, seed: int) -> dict:
    """Return the content of the study's file with another seed.

    Fine-tuning takes as many seeds as before, from the seed times their number on: no two seeds
    of the study share one. The generated data stay, because they are part of the experiment.
    """
    if study.file is None:
        raise UserError(f"{study.name}: was not read from a file")
    content = study_file.read(Path(study.file))
    count = len(study.finetune.seeds)
    content["seed"] = seed
    content["finetune"] = {**(content.get("finetune") or {}), "seeds": list(range(seed * count, (seed + 1) * count))}
    return content | {"expect": []}  # the gate judges, not the study's expectations


def targets(study: Study, folder: Path) -> list[str]:
    """Return the records that the study's gate reads; none, for the whole study, without a gate."""
    jobs = dict.fromkeys(side.partition(":")[0] for metric in study.gate.metrics for side in metric.split(" / "))
    return [str(folder / job / "result.json") for job in jobs]


def run(name: str, results: Path, seeds: Iterable[int], cores: int) -> int:
    """Run the gated records of a study, or all if it has no gate, once for each seed.

    Return the exit code of the first run that fails; those after it do not start.
    """
    study = load_study(name)
    if not Path("Snakefile").is_file():
        raise UserError("seeds: no Snakefile here; run the command in the root of the repository")
    for seed in seeds:
        file = results / ".seeds" / f"{name_of(study, seed)}.yaml"
        write_atomically(file, yaml.safe_dump(seeded(study, seed), sort_keys=False).encode())
        wanted = targets(study, results / name_of(study, seed))
        words = ["--cores", str(cores), *wanted, "--config", f"study={file}", f"results={results}"]
        code = subprocess.run([sys.executable, "-m", "snakemake", *words], check=False).returncode
        if code:
            return code
    return 0
