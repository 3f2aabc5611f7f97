"""Write into one MLflow run within MLflow's limits on names, texts and batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mobilebert.reporting.run_inputs import DataSet

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_A_BATCH, PARAMS_A_BATCH = 850, 100  # 1,000 entries a batch, with tags
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 5000, 250

Point = tuple[str, float, int, int]  # key, value, milliseconds since 1970, step


def log(client: MlflowClient, run_id: str, points: Iterable[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Write points, parameters and tags in few batches."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(key_of(key), value, stamp, step) for key, value, stamp, step in points]
    named = {key_of(key): text[:PARAM_LENGTH] for key, text in params.items()}
    values = [Param(key, text) for key, text in named.items()]
    labels = [RunTag(key, value) for key, value in short(tags).items()]
    while metrics or values or labels:
        client.log_batch(run_id, metrics[:METRICS_A_BATCH], values[:PARAMS_A_BATCH], labels)
        metrics, values, labels = metrics[METRICS_A_BATCH:], values[PARAMS_A_BATCH:], []


def log_data_sets(client: MlflowClient, run_id: str, found: Iterable[DataSet]) -> None:
    """Write the data sets that a run read, as `mlflow.log_input` does."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for item in found:
        place = f'{{"uri": "{item.place}"}}'
        entity = Dataset(item.name, item.digest, "local", place, item.columns or None, item.profile)
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", item.context)]))
    if inputs:
        client.log_inputs(run_id, inputs)


def key_of(name: str) -> str:
    """Return the name of a metric or parameter with only the characters that MLflow accepts."""
    name = "/".join(part.strip(".") or "_" for part in re.sub(r"[^/\w.\- :]", "_", name).split("/"))
    return name[:KEY_LENGTH].rstrip("/")


def short(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags with texts of at most TAG_LENGTH characters."""
    return {key: value[:TAG_LENGTH] for key, value in tags.items()}
