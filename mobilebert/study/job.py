"""Define a job, one run of one stage, and the graph that jobs form."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mobilebert.study.code_hash import canonical, code_hash, digest


@dataclass(frozen=True)
class Job:
    """One run of one stage. `name` is empty for the stages that run once a study."""

    stage: str
    name: str
    config: dict
    inputs: tuple[str, ...]
    fingerprint: str

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.name}" if self.name else self.stage

    @property
    def row(self) -> str | None:
        """Return the model row that the job belongs to; None for a stage that runs once a study."""
        return self.name.partition("/")[0] or None


# --- the graph


class Graph(dict):
    """Job id -> Job, inputs before their users. `study_file`: what it was built from, where that was a file."""

    study_file: str | None = None

    def add(self, stage: str, name: str, config: dict, inputs=()) -> str:
        inputs = tuple(inputs)
        used = {key: self[key].fingerprint for key in inputs}
        config = json.loads(canonical(config))
        fingerprint = digest({"stage": stage, "name": name, "config": config, "inputs": used, "code": code_hash(stage)})
        job = Job(stage, name, config, inputs, fingerprint)
        self[job.id] = job
        return job.id
