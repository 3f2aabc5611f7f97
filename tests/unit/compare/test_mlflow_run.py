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


def test_a_comparison_is_logged_once_beside_the_runs_of_its_study(store, tmp_path, monkeypatch, capsys):
    folder, parent = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    new = write_run(tmp_path / "new", rate=2e-3, accuracy=0.8)
    assert main(["compare", f"runs:/{parent}", str(new), "--log"]) == 0
    assert main(["compare", f"runs:/{parent}", str(new), "--log"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert second.partition("runs:/")[2] == first.partition("runs:/")[2]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(first.partition("runs:/")[2].split()[0])
    assert client.get_experiment(run.info.experiment_id).name == "smoke"
    assert (run.info.status, run.data.tags["equal"], run.info.run_name) == (
        "FINISHED",
        "false",
        f"new (1 run) against {parent} (1 run)",
    )
    score = "finetune/mobilebert/sst2:accuracy"
    assert run.data.metrics[f"base/{score}"] == 0.9
    assert run.data.metrics[f"difference/{score}"] == pytest.approx(-0.1)
    assert run.data.params["configuration.finetune.learning_rate"] == "0.001 -> 0.002 (finetune/mobilebert/sst2)"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "comparison.json", "comparison.html", "comparison.txt",
    }  # fmt: skip
    assert f"runs:/{parent}" in run.data.tags["mlflow.note.content"]


def test_without_a_store_a_comparison_is_not_logged(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base, new = write_run(tmp_path / "base"), write_run(tmp_path / "new")
    assert main(["compare", str(base), str(new), "--log"]) == 2
    assert f"{new}/mlflow.db is missing; run `mobilebert track`" in capsys.readouterr().err
    assert not list(tmp_path.rglob("mlflow.db"))
