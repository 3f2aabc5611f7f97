"""Read a study's run back from an MLflow store, into files or as records.

In this module a parent is the MLflow run of a study, and a child that of a record.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilebert.jobs.record import Record, read_record
from mobilebert.reporting.experiment import STUDY_FILE
from mobilebert.reporting.run_params import SHARED
from mobilebert.reporting.store import SETTINGS, VARIABLE, database_of, in_one_line
from mobilebert.study.schema import NAME
from mobilebert.study.stages import STAGES
from mobilebert.util.errors import UserError, shown

RECORD = "result.json"


@dataclass(frozen=True)
class Parent:
    """A parent and its children, the newest of each job; or a single child, without its parent."""

    client: Any
    run: Any
    children: tuple[Any, ...]


@contextmanager
def opened(run_id: str) -> Iterator[Parent]:
    """Yield a parent or a single child. MLFLOW_TRACKING_URI names the store.

    Raises UserError, one line, if the store or the run cannot be read in this block.
    """
    name = f"runs:/{run_id}"
    if not os.environ.get(VARIABLE):
        raise UserError(f"{name}: set {VARIABLE} to the store, as sqlite:///results/smoke/mlflow.db")
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    with in_one_line(name, ""):
        if (file := database_of(os.environ[VARIABLE])) and not file.is_file():  # MLflow would create it
            raise UserError(f"{VARIABLE}: {file}: no such database")
        from mlflow import MlflowClient

        client = MlflowClient()
        run = client.get_run(run_id)
        found = [run] if "job" in run.data.tags else _children(client, run)
        newest = {child.data.tags["job"]: child for child in found if "record" in child.data.tags}
        if not newest:
            raise UserError(f"{name}: holds no record; name the run of a study, or of one of its records")
        yield Parent(client, run, tuple(newest.values()))


def _children(client, parent) -> list:
    """Return the children of a parent, the oldest first."""
    found, experiment = [], [parent.info.experiment_id]
    for query in (
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
        f"tags.used_by LIKE '%{parent.info.run_id}%'",
    ):
        token = None
        while True:
            page = client.search_runs(experiment, query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                break
    return sorted((run for run in found if "job" in run.data.tags), key=lambda run: run.info.start_time)


def read_records(run_id: str) -> list[Record]:
    """Return the records of a parent, or of a single child: their files if the store has them, else
    what it logged."""
    with opened(run_id) as parent, tempfile.TemporaryDirectory() as folder:
        found = []
        for child in parent.children:
            file = _download(parent.client, child, RECORD, Path(folder))
            found.append(read_record(file) if file else _logged(parent.client, child))
        return found


def download(run_id: str, folder: Path) -> Path:
    """Copy the records of a parent and their files into `folder`, as a study's results; return the
    file of its study. Raises UserError if the store keeps no files of the run."""
    with opened(run_id) as parent:
        study = parent.run.data.tags.get("study", "")
        if "job" in parent.run.data.tags:
            raise UserError(f"runs:/{run_id}: the run of one record; name that of its study")
        file = _download(parent.client, parent.run, STUDY_FILE, folder)
        if not file:
            raise UserError(f"runs:/{run_id}: the store keeps no files of this run; use the results folder: --records")
        if not NAME.fullmatch(study):
            raise UserError(f"runs:/{run_id}: {shown(study)} is no study's name")
        for child in parent.children:
            stage, *name = child.data.tags["job"].split("/")
            if stage not in STAGES or any(not NAME.fullmatch(part) for part in name):  # it may point out of the folder
                raise UserError(f"runs:/{child.info.run_id}: {shown(child.data.tags['job'])} is no job's id")
            place = folder / stage / "/".join(name)
            place.mkdir(parents=True, exist_ok=True)
            parent.client.download_artifacts(child.info.run_id, "", str(place))
            if not (place / RECORD).is_file():
                raise UserError(f"runs:/{child.info.run_id}: has no {RECORD}; track the study again")
        found = file.rename(folder / f"{study}.yaml")  # JSON is YAML
        file.parent.rmdir()
        return found


def _download(client, run, name: str, folder: Path) -> Path | None:
    """Return a copy of one file of a run; None if the store lacks it."""
    if not any(item.path == name for item in client.list_artifacts(run.info.run_id)):
        return None
    place = folder / run.info.run_id
    place.mkdir(parents=True, exist_ok=True)
    return Path(client.download_artifacts(run.info.run_id, name, str(place)))


def _logged(client, child) -> Record:
    """Return a record with only what the store logged of it.

    Raises UserError if that is no record.
    """
    try:
        return _from_logged(client, child)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"runs:/{child.info.run_id}: not a run that `mobilebert track` wrote") from None


def _from_logged(client, child) -> Record:
    tags, metrics = child.data.tags, child.data.metrics
    params = dict(child.data.params)
    if left_out := tags.get("shared_params", "").split():
        above = client.get_run(tags["mlflow.parentRunId"]).data.params
        params |= {key: above[f"{SHARED}{key}"] for key in left_out}
    config = {key: json.loads(value) if key in ("seed", "seeds") else value for key, value in params.items()}
    stage, _, name = tags["job"].partition("/")
    logged = {key: value for key, value in metrics.items() if not key.startswith(("samples/", "curves/", "system/"))}
    status = "ok" if tags["status"] == "failed" else tags["status"]  # a view's word for a record that did not learn
    content = {"stage": stage, "name": name, "status": status, "fingerprint": tags["fingerprint"], "metrics": logged}
    return Record.model_validate({"schema": 1, "study": tags["study"], "config": config, "inputs": {}, **content})
