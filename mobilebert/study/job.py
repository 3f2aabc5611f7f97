"""Define a job and the graph that jobs form."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mobilebert.study.code_hash import canonical, code_hash, digest


@dataclass(frozen=True)
class Job:
    """A stage with its configuration and inputs. `name` is empty if it runs once a study."""

    stage: str
    name: str
    config: dict
    inputs: tuple[str, ...]
    fingerprint: str

    @property
    def id(self) -> str:
        """Return "stage/name", or "stage" if there is no name."""
        return f"{self.stage}/{self.name}" if self.name else self.stage

    @property
    def row(self) -> str | None:
        """Return the model row of the job; None for a stage that runs once a study."""
        return self.name.partition("/")[0] or None


# --- the graph


class Graph(dict):
    """A mapping of job id to Job, inputs before users. `study_file`: the study's file, if any."""

    study_file: str | None = None

    def add(self, stage: str, name: str, config: dict, inputs=()) -> str:
        """Add a job, whose inputs are in the graph already, and return its id."""
        inputs = tuple(inputs)
        used = {key: self[key].fingerprint for key in inputs}
        config = json.loads(canonical(config))
        fingerprint = digest({"stage": stage, "name": name, "config": config, "inputs": used, "code": code_hash(stage)})
        job = Job(stage, name, config, inputs, fingerprint)
        self[job.id] = job
        return job.id
