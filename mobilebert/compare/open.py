"""Open what a user names as a side: a folder of records, a file or an MLflow run.

A file is a baseline or one of pytest-benchmark's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mobilebert.compare.baseline import Baseline, read_baseline
from mobilebert.compare.benchmarks import is_benchmarks, read_benchmarks
from mobilebert.compare.side import Run, Side, side, sides
from mobilebert.jobs.folder import RecordFolder, read_folder
from mobilebert.util.errors import UserError

MLFLOW = "runs:/"


def open_run(name: str) -> Run:
    """Return the run that a folder or `runs:/<id>` holds. Raises UserError if there is none."""
    if name.startswith(MLFLOW):
        from mobilebert.compare.mlflow_run import read_run  # needs MLflow, which takes seconds

        return read_run(name.removeprefix(MLFLOW))
    folder = open_folder(name)
    return Run(name, folder.records, folder.edited)


def open_folder(name: str) -> RecordFolder:
    """Return the records of a folder. Raises UserError if it has none, or a damaged one."""
    folder = read_folder(Path(name))
    for path, problem in folder.damaged.items():
        raise UserError(f"{path}: {problem}")
    if not folder.records and not folder.edited:
        raise UserError(f"{name}: holds no record; name a study's results, as results/smoke")
    return folder


def open_base(name: str) -> tuple[Side, Baseline | None]:
    """Return the side to compare with, and its baseline if a file holds one."""
    path = Path(name)
    if not name.startswith(MLFLOW) and not path.exists():
        raise UserError(f"{name}: no such file or folder")
    if name.startswith(MLFLOW) or not path.is_file():
        return side(name, [open_run(name)]), None
    if is_benchmarks(path):
        return read_benchmarks(path), None
    baseline = read_baseline(path)
    return baseline.side(name), baseline


def open_new(names: Iterable[str], base: str) -> list[Side]:
    """Return the sides that are compared; runs that differ in their seeds alone are one side.

    Raises UserError if a side cannot be read, if two names, or `base` and a name, are one place, or
    if one is a copy of another.
    """
    names = list(names)
    places = [_place(name) for name in names]
    for place, name in zip(places, names, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{name}: named twice; the same values are no further seeds")
        if place == _place(base):
            raise UserError(f"{name}: named as BASE and as NEW; a run equals itself")
    found, runs = [], []
    for name in names:
        if not name.startswith(MLFLOW) and Path(name).is_file():
            found.append(open_base(name)[0])
        else:
            run = open_run(name)
            # A run with edited records is shown so; those that are left may well be another run's.
            if not run.edited and (twin := next((other.name for other in runs if other.records == run.records), None)):
                raise UserError(f"{name}: holds the records of {twin}; the same values are no further seeds")
            runs.append(run)
    return [*found, *sides(runs)]


def _place(name: str) -> str:
    return name if name.startswith(MLFLOW) else os.path.realpath(name)
