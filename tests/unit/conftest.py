"""A results folder with an empty MLflow store."""

import shutil

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Return an empty database; MLflow takes seconds to create one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def results(tmp_path, monkeypatch, empty_database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "results" / "study").mkdir(parents=True)
    shutil.copy(empty_database, tmp_path / "results" / "study" / "mlflow.db")
    return tmp_path / "results"
