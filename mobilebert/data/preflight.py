"""Check the results folder and the study's data before any work starts.

Snakemake and every program do it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mobilebert.jobs.freshness import freshness_of
from mobilebert.study.graph import with_upstream
from mobilebert.study.job import Graph
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError, shown
from mobilebert.util.files import file_sha256

# Characters with a meaning in Snakemake's wildcards or in the URL of MLflow's store.
NOT_IN_RESULTS = "{}?#%"


def before_work(study: Study, results: Path, graph: Graph, ids: Iterable[str]) -> None:
    """Raise UserError if the data that the jobs `ids` need is not the data that the study names."""
    if "data" in with_upstream(graph, ids):
        check(study, freshness_of(results, study.name, graph["data"], graph) == "current")


def check_results(results: Path, study: str) -> None:
    """Raise UserError if a program would misread the path, or cannot put a study's folder there."""
    text = str(results)
    if text.startswith(("-", "~")):
        raise UserError(f"--results: {shown(text)}: the path must not begin with '-' or '~'; give the whole path")
    if wrong := [letter for letter in text if letter in NOT_IN_RESULTS or not letter.isprintable()]:
        raise UserError(f"--results: {shown(text)}: the path must not contain {wrong[0]!r}; choose another folder")
    try:
        there = next((path for path in (results / study, results, *results.parents) if path.exists()), None)
        if there and not there.is_dir():
            raise UserError(f"--results: {there}: is a file; choose a folder for the results")
    except OSError as error:
        raise UserError(f"--results: {shown(text)}: {error.strerror}") from None


def check(study: Study, prepared: bool) -> None:
    """Raise UserError if a local data folder is missing, is another one than the study names, lacks
    a file or has a wrong one.

    prepared: the data stage has read the folder already; nothing is then checked.
    """
    kind, _, path = study.data.source.partition(":")
    if kind != "local" or prepared:
        return
    from mobilebert.data.reading import reading
    from mobilebert.data.sources import open_source

    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{study.name}: data.source: no folder {path}")
    source = open_source(study.data.source)
    with reading(folder / "SHA256SUMS"):
        found = file_sha256(folder / "SHA256SUMS")
    if found != study.data.sums:
        raise UserError(f"{study.name}: data.sums: {folder / 'SHA256SUMS'} has sha256 {found}, the study names {study.data.sums}")
    from mobilebert.study.tasks import TASKS

    source.vocab()
    source.files("corpus")
    fine_tuned = {task for model in study.models for task in (*study.tasks_of(model), *study.quantized_tasks_of(model))}
    sides = [str(side) for item in study.expect for side in (item.metric, item.above, item.below)]
    mismatched = any(":mismatched_" in side for side in sides)
    for name, task in TASKS.items():
        needed = {"train", "validation"} if name in fine_tuned else {"validation"} if task.is_squad else set()
        needed |= {"validation_mismatched"} if name == "mnli" and mismatched else set()
        there = source.splits(name)
        if missing := {task.splits[role] for role in needed} - set(there):
            raise UserError(f"{folder}: no {task.folder}/{min(missing)}.parquet, which the study {study.name} needs")
        for split in there:
            source.table(name, split)
