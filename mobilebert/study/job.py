"""Define a job and the graph that jobs form."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from mobilebert.study.code_hash import canonical, code_hash, digest
from mobilebert.study.stage_config import CONFIGS, StageConfig, stage_config

Config = TypeVar("Config", bound=StageConfig)


@dataclass(frozen=True)
class Job:
    """A stage with its configuration and inputs. `name` is empty if it runs once a study."""

    stage: str
    name: str
    config: dict[str, Any]
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

    def settings(self, kind: type[Config]) -> Config:
        """Return the typed view of `config`, which is of class `kind`.

        Raises ValueError if `config` is not a configuration of the stage, TypeError if the stage's
        class is not a `kind`.
        """
        if not isinstance(self._settings, kind):
            raise TypeError(f"{self.id}: its configuration is a {type(self._settings).__name__}, not a {kind.__name__}")
        return self._settings

    @cached_property
    def _settings(self) -> StageConfig:
        return stage_config(self.stage, self.config)


# --- the graph


class Graph(dict[str, Job]):
    """A mapping of job id to Job, each after its inputs.

    study_file: the study's file, if any.
    """

    study_file: str | None = None

    def add(self, stage: str, name: str, config: dict[str, Any], inputs: Iterable[str] = ()) -> str:
        """Add a job, whose inputs are in the graph already, and return its id.

        Raises ValueError, naming job and key, if the configuration is not that of the stage.
        """
        inputs = tuple(inputs)
        used = {key: self[key].fingerprint for key in inputs}
        config = json.loads(canonical(config))
        fingerprint = digest({"stage": stage, "name": name, "config": config, "inputs": used, "code": code_hash(stage)})
        job = Job(stage, name, config, inputs, fingerprint)
        if stage in CONFIGS:
            try:
                job.settings(StageConfig)
            except ValueError as error:
                raise ValueError(f"{job.id}: {error}") from None
        self[job.id] = job
        return job.id
