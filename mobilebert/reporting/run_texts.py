"""Word the names, tags, descriptions and headline metrics of MLflow runs."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Iterable, Mapping

from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.study.stages import STAGES, VIEWS
from mobilebert.study.tasks import TASKS
from mobilebert.util.text import cut, one_line

NAMED = 20  # runs that a description names one by one
# Tags that MLflow's page reads.
NOTE, USER, COMMIT, DIRTY = "mlflow.note.content", "mlflow.user", "mlflow.source.git.commit", "mlflow.source.git.dirty"
SOURCE, SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"


def run_name(job: str) -> str:
    """Return the name of a job's run: its id from the end, because lists cut a name at its end.

    `finetune/mobilebert/sst2` is `sst2 mobilebert finetune`.
    """
    return " ".join(reversed(job.split("/")))


def model_of(job: str) -> str:
    """Return the model that a job's id names; "" if none."""
    return job.split("/")[1] if STAGES[job.partition("/")[0]].takes and "/" in job else ""


def task_of(job: str) -> str:
    """Return the task that a job's id names; "" if none."""
    task = job.rpartition("/")[2]
    return task if task in TASKS else ""


def headline(found: Mapping[str, Record]) -> dict[str, float]:
    """Return the metrics of a study's run.

    They are the task's metrics of each score, each held-out value and the median of each timing,
    named as `expect` and `gate` name them. A record without a value that counts has none.
    """
    metrics = {}
    for key, record in found.items():
        if record.stage in VIEWS or record.status != "ok":
            continue
        for name, value in record.metrics.items():
            if reading.is_number(value) and _is_headline(record, name):
                metrics[f"{key}:{name}"] = reading.number(value)
    return metrics


def _is_headline(record: Record, name: str) -> bool:
    if reading.is_score(record):
        task = TASKS.get(task_of(record.id))
        return task is not None and name in task.metrics
    return name.startswith("heldout_") or name.endswith(":p50_ms")


def origin(records: Iterable[Record]) -> dict[str, str]:
    """Return the tags on the commit of the newest record that knows one."""
    known = [record for record in records if record.commit]
    if not known:
        return {}
    commit = max(known, key=lambda record: reading.started(record.started)).commit or ""
    return {COMMIT: commit.removesuffix("-dirty"), DIRTY: str(commit.endswith("-dirty")).lower()}


def user() -> dict[str, str]:
    """Return the tag on the user of this process; none if the system has no name for it."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        return {USER: getpass.getuser()}
    return {}


def parent_tags(study: str, description: str, found: Mapping[str, Record]) -> dict[str, str]:
    """Return the tags of a study's run: models, tasks, commit and a description in Markdown."""
    records = [record for record in found.values() if record.stage not in VIEWS]
    models = dict.fromkeys(filter(None, (model_of(record.id) for record in records)))
    tasks = dict.fromkeys(filter(None, (task_of(record.id) for record in records)))
    tags = {"model": ", ".join(models), "task": ", ".join(tasks), NOTE: _note(description, records)}
    tags |= {SOURCE: f"mobilebert track --study {study}", SOURCE_TYPE: "LOCAL"}
    return {key: text for key, text in tags.items() if text} | origin(records)


def _note(description: str, records: list[Record]) -> str:
    bad = [record for record in records if reading.status(record) != "ok"]
    lines = [description, "", f"{len(records)} records, {len(records) - len(bad)} ok."]
    if bad:
        lines += ["", *(f"- {record.id}: {_outcome(record)}" for record in bad[:NAMED])]
    if len(bad) > NAMED:
        lines.append(f"- and {len(bad) - NAMED} more")
    return "\n".join(lines)


def child_tags(record: Record) -> dict[str, str]:
    """Return the tags of a record's run: commit, and a description of outcome and labels."""
    lines = [] if reading.status(record) == "ok" else [_outcome(record), ""]
    lines += [f"- {label}" for label in reading.labels(record)]
    return {NOTE: "\n".join(lines)} | origin([record])


def _outcome(record: Record) -> str:
    why = reading.reason(record)
    return cut(one_line(f"{reading.status(record)} ({why})" if why else reading.status(record)), 200)
