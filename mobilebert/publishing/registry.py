"""Register fine-tuned checkpoints as MLflow models: the code is a file, and nothing is pickled."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mobilebert.publishing.checkpoint import Checkpoint
from mobilebert.reporting import reading
from mobilebert.reporting.run_texts import child_tags, task_of
from mobilebert.reporting.store import VARIABLE, Store, open_store, trouble, writer
from mobilebert.study.tasks import TASKS, Task
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "current"  # names the version made from the study's current record
PACKAGE = Path(__file__).parents[1]
CODE = Path(__file__).with_name("served_model.py")

Say = Callable[[str], None]


def register(folder: Path, study: str, chosen: Iterable[Checkpoint], say: Say) -> dict[str, int]:
    """Register each checkpoint and give it ALIAS; return how many were "registered" or "there".

    folder: that of the study's results. say: takes a line for each version, and for each model that
    has not learnt and is left out. Raises UserError if the store fails or lacks the record's run.
    """
    counts = {"registered": 0, "there": 0}
    with writer(folder), trouble(folder):  # to open a store may create its database
        store = open_store(folder.resolve(), study, say)
        if not store.keeps_files:
            raise UserError("track: --models: this store keeps its files in another results folder; name a server")
        with _used(store):
            for checkpoint in chosen:
                record = checkpoint.record
                if reading.status(record) != "ok":
                    say(f"{record.id}: {reading.status(record)}; not registered")
                    continue
                checkpoint.check()
                outcome, version = _register(store, checkpoint)
                counts[outcome] += 1
                say(f"models:/{checkpoint.name}@{ALIAS}: version {version}, {outcome}")
    return counts


@contextlib.contextmanager
def _used(store: Store) -> Iterator[None]:
    """Name the store by its variable in this block: to log a model, MLflow takes no client."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = store.uri
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _register(store: Store, checkpoint: Checkpoint) -> tuple[str, str]:
    """Return "registered" or "there", and the version."""
    from mlflow.exceptions import MlflowException

    client, name, content = store.client, checkpoint.name, file_sha256(checkpoint.files["result.json"])
    known = _versions(client, name, content)
    outcome = "there" if known else "registered"
    if not known:
        with contextlib.suppress(MlflowException):  # it is there
            client.create_registered_model(name, description=f"Fine-tuned in study {checkpoint.record.study}.")
        model, run_id = _logged(store, checkpoint, content)
        note = child_tags(checkpoint.record)["mlflow.note.content"]
        made = client.create_model_version(
            name, model.artifact_location, run_id, tags={"record": content}, description=note, model_id=model.model_id
        )
        known = _versions(client, name, content)
        if int(made.version) != known[0]:  # another machine has registered the record meanwhile
            client.delete_model_version(name, made.version)
            outcome = "there"
    client.set_registered_model_alias(name, ALIAS, str(known[0]))
    return outcome, str(known[0])


def _versions(client: MlflowClient, name: str, content: str) -> list[int]:
    """Return the versions of a model that were made from the record with this hash, in order."""
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(int(item.version) for item in found if item.tags.get("record") == content)


def _logged(store: Store, checkpoint: Checkpoint, content: str):
    """Return the logged model of a checkpoint and the id of its run; log it if it is missing."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.pyfunc import log_model

    client, record = store.client, checkpoint.record
    runs = client.search_runs([store.experiment], f"tags.record = '{content}'", max_results=1)
    if not runs:
        raise UserError(f"track: --models: MLflow has no run of {record.id}; run `mobilebert track` first")
    run_id = runs[0].info.run_id
    found = client.search_logged_models([store.experiment], f"tags.record = '{content}'")
    for model in found:
        if model.status == LoggedModelStatus.READY:
            return model, run_id
    task = TASKS[task_of(record.id)]
    model = client.create_logged_model(
        store.experiment, re.sub(r"[/:.%\"']", "-", checkpoint.name), run_id, {"record": content}, model_type=_kind(task)
    )
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an example; the signature says more
        folder = Path(place) / "checkpoint"
        folder.mkdir()
        for name, file in checkpoint.files.items():
            shutil.copyfile(file, folder / name)  # MLflow takes no links
        log_model(
            python_model=str(CODE),
            artifacts={"checkpoint": str(folder)},
            model_config={"task": task.name},
            signature=signature(task),
            code_paths=[str(PACKAGE)],
            pip_requirements=_requirements(),
            model_id=model.model_id,
        )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return client.get_logged_model(model.model_id), run_id


def _kind(task: Task) -> str:
    return "regressor" if task.is_regression else "question-answering" if task.is_squad else "classifier"


def signature(task: Task):
    """Return the columns that a model of the task reads and gives."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    key = ("string", "id") if task.is_squad else ("long", "idx")
    given = [ColSpec("string", name) for name in task.text_columns] + [ColSpec(*key, required=False)]
    if task.is_squad:
        v2 = task.name == "squad_v2.0"
        columns = [("string", "answer")] * v2 + [("string", "prediction")] + [("double", "null_odds")] * v2
    elif task.labels is None:
        columns = [("double", "prediction")]
    else:
        columns = [("long", "prediction"), ("string", "label"), *(("double", f"probability_{name}") for name in task.labels)]
    return ModelSignature(Schema([*given]), Schema([ColSpec(kind, name) for kind, name in (key, *columns)]))


def _requirements() -> list[str]:
    """Return the packages that the model needs, with the versions of this environment."""
    needed = [
        re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in metadata.requires("mobilebert") or () if "extra ==" not in text
    ]
    return [f"{name}=={metadata.version(name)}" for name in (*needed, "mlflow")]
