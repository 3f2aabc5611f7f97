"""Decide whether the record on disk is its job's own: its fingerprint counts, not its age."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from mobilebert.jobs.record import Record, read_record
from mobilebert.study.job import Graph, Job
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError


def record_folder(results: Path, study: str, job: Job | Record) -> Path:
    return results / study / job.stage / job.name if job.name else results / study / job.stage


def record_file(results: Path, study: str, job: Job) -> Path:
    return record_folder(results, study, job) / "result.json"


def freshness_of(results: Path, study: str, job: Job, graph: Graph) -> Literal["missing", "stale", "current"]:
    """Return whether the record on disk is this job's: its fingerprint decides, not its age.

    A refused record is made again, unless the input that refused it still diverged. A record edited by hand is stale.
    """
    path = record_file(results, study, job)
    if not path.exists():
        return "missing"
    try:
        record = read_record(path)
    except UserError:
        return "stale"
    if record.fingerprint != job.fingerprint or record.id != job.id or record.seal == "edited":
        return "stale"
    return "current" if record.status != "refused" or _bad_input(results, study, job, graph) else "stale"


def _bad_input(results: Path, study: str, job: Job, graph: Graph) -> str | None:
    """Why a job cannot run on its inputs: one that diverged, or was itself refused for such a one."""
    for key in job.inputs:
        if freshness_of(results, study, graph[key], graph) == "current":
            status = read_record(record_file(results, study, graph[key])).status
            if status in ("diverged", "refused"):
                return f"input {key} is {status}"
    return None


def current_records(results: Path, study: str, graph: Graph) -> dict[str, Record]:
    """Every record on disk that is its job's own."""
    found = {}
    for key, job in graph.items():
        if freshness_of(results, study, job, graph) == "current":
            found[key] = read_record(record_file(results, study, job))
    return found


def edited_records(results: Path, study: str, graph: Graph) -> list[str]:
    """Return the ids of the jobs whose record was changed after it was written. A view is made again without a word."""
    found = []
    for key, job in graph.items():
        with contextlib.suppress(UserError):
            if (
                job.stage not in VIEWS
                and record_file(results, study, job).exists()
                and read_record(record_file(results, study, job)).seal == "edited"
            ):
                found.append(key)
    return found


def damaged_records(results: Path, study: str, graph: Graph) -> dict[Path, str]:
    """Return the files of jobs' records that are no record, each with what is wrong. A view is made again without a word."""
    found = {}
    for job in graph.values():
        path = record_file(results, study, job)
        try:
            if job.stage not in VIEWS and path.exists():
                read_record(path)
        except UserError as error:
            found[path] = str(error).removeprefix(f"{path}: ")
    return found
