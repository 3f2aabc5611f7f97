"""Decide whether a record on disk is current: its fingerprint counts, not its age."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

from mobilebert.jobs.record import Record, read_record
from mobilebert.study.job import Graph, Job
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError


def record_folder(results: Path, study: str, job: Job | Record) -> Path:
    """Return the folder of a job's record and artefacts."""
    return results / study / job.stage / job.name if job.name else results / study / job.stage


def record_file(results: Path, study: str, job: Job) -> Path:
    """Return the path of a job's record."""
    return record_folder(results, study, job) / "result.json"


def freshness_of(results: Path, study: str, job: Job, graph: Graph) -> Literal["missing", "stale", "current"]:
    """Return the freshness of a job's record: current if it has the job's fingerprint.

    A damaged record or one edited by hand is stale. So is a refused one, unless an input of the job
    is still diverged or refused.
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
    return "current" if record.status != "refused" or bad_input(results, study, job, graph) else "stale"


def bad_input(results: Path, study: str, job: Job, graph: Graph) -> str | None:
    """Return which input diverged or was refused, so that the job cannot run; None if none did."""
    for key in job.inputs:
        if freshness_of(results, study, graph[key], graph) == "current":
            status = read_record(record_file(results, study, graph[key])).status
            if status in ("diverged", "refused"):
                return f"input {key} is {status}"
    return None


def current_records(results: Path, study: str, graph: Graph) -> dict[str, Record]:
    """Return job id -> record for every current record on disk."""
    found = {}
    for key, job in graph.items():
        if freshness_of(results, study, job, graph) == "current":
            found[key] = read_record(record_file(results, study, job))
    return found


def edited_records(results: Path, study: str, graph: Graph) -> list[str]:
    """Return the ids of jobs whose record was edited by hand. Views are silently written again."""
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
    """Return file -> problem of every damaged record. Views are silently written again."""
    found = {}
    for job in graph.values():
        path = record_file(results, study, job)
        try:
            if job.stage not in VIEWS and path.exists():
                read_record(path)
        except UserError as error:
            found[path] = str(error).removeprefix(f"{path}: ")
    return found
