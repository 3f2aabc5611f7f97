"""List the data sets that a job read, for MLflow: name, digest, place, rows and columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.study.tasks import TASKS

DIGEST_LENGTH = 36  # MLflow's limit
READS_TRAIN = ("finetune",)  # of the stages that read a task; int8 models are scored only
READS_CORPUS = ("pretrain", "transfer", "distill")
TYPES = {"text": "string", "class": "long", "integer": "long", "score": "double"}


@dataclass(frozen=True)
class DataSet:
    """One file of the job `data`. context: what it is for. digest: the start of its sha256."""

    name: str
    context: str
    digest: str
    place: str
    columns: str
    profile: str


def data_sets(record: Record, found: Mapping[str, Record]) -> list[DataSet]:
    """Return the data sets that a job read; none if the record of its data is not in `found`."""
    data = found.get("data")
    if data is None or record.inputs.get("data") != data.fingerprint:
        return []
    task = TASKS.get(str(record.config.get("task")))
    if record.stage in READS_CORPUS:
        return _corpus(data)
    return _task(data, task.name, record.stage) if task else []


def _task(data: Record, task: str, stage: str) -> list[DataSet]:
    found = []
    for split in TASKS[task].splits:
        context = "training" if split == "train" else "validation"
        if split.startswith("test") or (split == "train" and stage not in READS_TRAIN):
            continue
        columns = [
            {"type": TYPES[kind], "name": name, "required": True} for name, kind in TASKS[task].columns.items() if kind in TYPES
        ]
        rows = data.details.get("rows")
        rows = rows.get(task, {}).get(split) if isinstance(rows, dict) and isinstance(rows.get(task, {}), dict) else None
        found += _file(data, f"{task}/{split}", context, f"tasks/{task}/{split}.parquet", columns, {"num_rows": rows})
    return found


def _corpus(data: Record) -> list[DataSet]:
    found = []
    for split, context in (("train", "training"), ("heldout", "validation")):
        counts = {f"num_{unit}": data.metrics.get(f"{unit}_{split}") for unit in ("documents", "sentences", "tokens")}
        found += _file(data, f"corpus/{split}", context, f"corpus/{split}.tokens.npy", [], counts)
    return found


def _file(data: Record, name: str, context: str, place: str, columns: list[dict], profile: dict) -> list[DataSet]:
    """Return the data set of one artefact; none if the record lacks it."""
    known = data.artefacts.get(place)
    digest = known.get("sha256") if isinstance(known, dict) else None
    if not isinstance(digest, str):
        return []
    kept = {key: reading.number(value) for key, value in profile.items() if reading.is_number(value)}
    name = f"{str(data.config.get('source', '')).partition(':')[0]}/{name}"  # of local:<folder>, not the folder
    schema = json.dumps({"mlflow_colspec": columns}) if columns else ""
    return [DataSet(name, context, digest[:DIGEST_LENGTH], f"data/{place}", schema, json.dumps(kept))]
