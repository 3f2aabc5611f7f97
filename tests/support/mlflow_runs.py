"""Write records and states of three jobs, and read the MLflow runs made of them."""

import json

from mobilebert.jobs.freshness import record_file
from mobilebert.jobs.record import read_record, sealed
from mobilebert.study.job import Graph, Job
from mobilebert.study.schema import Study

STUDY = Study(schema=1, description="a study of three jobs")  # its name is "study"


def job(stage, name, fingerprint, **config):
    return Job(stage, name, config, (), fingerprint * 8)


def graph_of(*jobs):
    graph = Graph()
    for item in jobs:
        graph[item.id] = item
    return graph


def write_record(results, item, status="ok", **fields):
    path = record_file(results, "study", item)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "study": "study",
        "stage": item.stage,
        "name": item.name,
        "status": status,
        "fingerprint": item.fingerprint,
        "config": item.config,
        "inputs": {},
        "started": "2020-01-01T00:00:00+00:00",
        "seconds": 2.5,
        **fields,
    }
    path.write_text(json.dumps(sealed(record)))
    return read_record(path)


def client_of(results):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{results / 'study' / 'mlflow.db'}")


def runs_of(results):
    """Return (parents, children by job id, trials by their name) as MLflow has them."""
    client = client_of(results)
    experiment = client.get_experiment_by_name("study").experiment_id
    runs = list(client.search_runs([experiment], max_results=1000))
    children = {}
    for run in runs:
        if "mlflow.parentRunId" in run.data.tags:
            children.setdefault(run.data.tags.get("job") or run.data.tags["run"], []).append(run)
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags], children


PRETRAIN = job("pretrain", "teacher", "aaaaaaaa", steps=10, architecture={"hidden_size": 64}, seeds=[0, 1])
LATENCY = job("latency", "", "cccccccc")
