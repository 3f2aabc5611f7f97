"""An MLflow run as a side: its records if the store has them, else what it logged."""

import json

import pytest
from mlflow import MlflowClient
from written import write_run

from mobilebert.cli.main import main
from mobilebert.jobs.folder import read_folder
from mobilebert.reporting.run_params import flatten


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a folder with run `a`, a store with the same run, and the id of its parent."""
    folder = tmp_path_factory.mktemp("store")
    write_run(folder / "a")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("smoke", artifact_location=(folder / "files").as_uri())
    parent = client.create_run(experiment).info.run_id
    for key, record in read_folder(folder / "a").records.items():
        tags = {"mlflow.parentRunId": parent, "job": key, "study": "smoke", "fingerprint": "f", "status": "ok", "record": "r"}
        child = client.create_run(experiment, tags=tags).info.run_id
        if key == "finetune/mobilebert/sst2":
            for name, value in flatten(record.config).items():
                client.log_param(child, name, value)
            for name, value in record.metrics.items():
                client.log_metric(child, name, value)
            client.log_metric(child, "samples/accuracy", 0.1)
        else:
            client.log_artifact(child, str(folder / "a" / key / "result.json"))
    return folder, parent


def test_a_run_of_mlflow_equals_the_folder_that_it_was_made_from(store, monkeypatch, capsys):
    folder, parent = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    assert main(["compare", str(folder / "a"), f"runs:/{parent}", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["equal"]
    assert found["differences"] == []
    assert {row["verdict"] for row in found["metrics"]} == {"same"}


def test_an_unknown_run_is_one_line(store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store[0]}/mlflow.db")
    assert main(["compare", str(store[0] / "a"), "runs:/nope"]) == 2
    assert capsys.readouterr().err == "mobilebert: runs:/nope: Run with id=nope not found\n"
