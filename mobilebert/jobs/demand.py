"""Decide which jobs of a study the workflow runs, and which are up to date."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mobilebert.jobs.freshness import freshness_of, record_file
from mobilebert.jobs.record import Record
from mobilebert.study.job import Graph
from mobilebert.study.stages import VIEWS

OUTPUTS = {"report": ("index.html", "tables.md"), "check": ("passed",)}  # beside result.json


@dataclass(frozen=True)
class Forced:
    """The rules and files that the command line runs by force.

    names: the rules and files of `--forcerun`, and the targets of `--force`.
    everything: whether `--forceall` was given.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.names or self.everything)


class Demand:
    """The freshness of every job of a study, read once, and what the workflow has to run."""

    def __init__(self, results: Path, study: str, graph: Graph, current: dict[str, Record]):
        self.results, self.study, self.graph, self.current = results, study, graph, current
        self.freshness = {key: freshness_of(results, study, job, graph) for key, job in graph.items()}

    def record(self, key: str) -> Path:
        """Return the path of a job's record."""
        return record_file(self.results, self.study, self.graph[key])

    def outputs(self, key: str) -> list[Path]:
        """Return the files without which a job has to run, whatever its record says."""
        record = self.record(key)
        return [record, *(record.with_name(name) for name in OUTPUTS.get(key, ()))]

    def is_forced(self, key: str, forced: Forced) -> bool:
        """Return whether the command line names the job: its rule or one of its files."""
        files = {os.path.abspath(path) for path in self.outputs(key)}
        by_file = not files.isdisjoint(map(os.path.abspath, forced.names))
        return forced.everything or self.graph[key].stage in forced.names or by_file

    def is_up_to_date(self, key: str, forced: Forced) -> bool:
        """Return whether a job need not run: its record is current and its files exist.

        A view must also show nothing that is computed again. A job that an input refused runs again
        if anything is forced: its fingerprint does not know why it was refused.
        """
        is_whole = all(path.exists() for path in self.outputs(key))
        if self.freshness[key] != "current" or not is_whole or self.is_forced(key, forced):
            return False
        if key in VIEWS:
            return not forced and all(self.is_settled(one, forced) for one in self.graph[key].inputs)
        return not (forced and self.current[key].status == "refused")

    def is_settled(self, key: str, forced: Forced) -> bool:
        """Return whether a view need not wait for a job: it is up to date or not needed."""
        return self.is_up_to_date(key, forced) or self.is_not_needed(key, forced)

    def is_not_needed(self, key: str, forced: Forced) -> bool:
        """Return whether a missing record may stay missing: its results are up to date.

        The record of a fine-tuning is always needed; it is a result itself. Attention maps are not
        worth a training: they may stay missing if a model that they show is.
        """
        job = self.graph[key]
        if self.freshness[key] != "missing" or job.stage == "finetune":
            return False
        if job.stage == "attention":
            return any(self.is_not_needed(one, forced) for one in job.inputs)
        users = (other for other, job in self.graph.items() if key in job.inputs and job.stage not in (*VIEWS, "attention"))
        return any(self.is_settled(user, forced) for user in users)

    def newest(self) -> float:
        """Return when the newest file of the study's jobs and tables was written.

        The time is in seconds since 1970; 0 if there is no file.
        """
        folders = (self.results / self.study / folder for folder in (*self.graph, "tables"))
        files = (path for folder in folders for path in folder.glob("*") if path.is_file())
        return max((path.stat().st_mtime for path in files), default=0.0)
