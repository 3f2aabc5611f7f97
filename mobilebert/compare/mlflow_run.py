"""Read a study's run from an MLflow store: the store keeps each record, or at least its metrics.

In this module a parent is the MLflow run of a study, and a child that of a record.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from mobilebert.compare.side import Run
from mobilebert.jobs.record import Record, read_record
from mobilebert.reporting.store import SETTINGS, VARIABLE, in_one_line
from mobilebert.util.errors import UserError


def read_run(run_id: str) -> Run:
    """Return the run of a parent or of a single child. MLFLOW_TRACKING_URI names the store.

    Raises UserError, one line, if the store or the run cannot be read, or no child has a record.
    """
    name = f"runs:/{run_id}"
    if not os.environ.get(VARIABLE):
        raise UserError(f"{name}: set {VARIABLE} to the store, as sqlite:///results/smoke/mlflow.db")
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    with in_one_line(name, ""):
        from mlflow import MlflowClient

        client = MlflowClient()
        run = client.get_run(run_id)
        children = [run] if "job" in run.data.tags else _children(client, run)
        records = [_record(client, child) for child in children if "record" in child.data.tags]
    if not records:
        raise UserError(f"{name}: holds no record; name the run of a study, or of one of its records")
    edited = tuple(record.id for record in records if record.seal == "edited")
    return Run(name, {record.id: record for record in records if record.seal != "edited"}, edited)


def _children(client, parent) -> list:
    found, token = [], None
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    while True:
        page = client.search_runs([parent.info.experiment_id], query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _record(client, child) -> Record:
    """Return a child's record: its result.json if the store has it, else what the store logged."""
    if any(item.path == "result.json" for item in client.list_artifacts(child.info.run_id)):
        with tempfile.TemporaryDirectory() as folder:
            return read_record(Path(client.download_artifacts(child.info.run_id, "result.json", folder)))
    tags, metrics = child.data.tags, child.data.metrics
    config = {key: json.loads(value) if key in ("seed", "seeds") else value for key, value in child.data.params.items()}
    stage, _, name = tags["job"].partition("/")
    logged = {key: value for key, value in metrics.items() if not key.startswith(("samples/", "curves/"))}
    status = "ok" if tags["status"] == "failed" else tags["status"]  # a view's word for a record that did not learn
    content = {"stage": stage, "name": name, "status": status, "fingerprint": tags["fingerprint"], "metrics": logged}
    return Record.model_validate({"schema": 1, "study": tags["study"], "config": config, "inputs": {}, **content})
