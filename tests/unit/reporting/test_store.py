"""A broken MLflow store is a one-line error with a way out; copies write nothing elsewhere."""

import contextlib
import shutil
import socket
import sqlite3
import time

import pytest

from mobilebert.reporting import store
from mobilebert.util.errors import UserError

LIMIT_S = 5.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a store of the study `study`; MLflow takes seconds to create one."""
    folder = tmp_path_factory.mktemp("made") / "study"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(store.VARIABLE, raising=False)
        store.open_store(folder, "study", print)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """Return the study's folder in other results; the database keeps its files there."""
    monkeypatch.delenv(store.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "results" / "study"
    shutil.copytree(made, own)
    change(own, f"update experiments set artifact_location = '{(own / store.ARTEFACTS).as_uri()}' where name = 'study'")
    return own


def change(folder, statement):
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute(statement)
        connection.commit()


def refusal(folder, said=None):
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        store.open_store(folder, "study", (said if said is not None else []).append)
    assert time.monotonic() - begun < LIMIT_S
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(folder):
    change(folder, "update experiments set lifecycle_stage = 'deleted' where name = 'study'")
    text = refusal(folder)
    assert f"MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db mlflow experiments restore --experiment-id 1" in text
    assert text.endswith("or delete mlflow.db: it is made again from the records")


def test_a_database_of_another_mlflow_is_named(folder):
    change(folder, "update alembic_version set version_num = '451aebb31d03'")
    text = refusal(folder)
    assert "out-of-date database schema" in text
    assert text.endswith("; delete mlflow.db: it is made again from the records")


@pytest.mark.parametrize("content", [b"no database at all, but some bytes", None])
def test_a_damaged_database_is_named(folder, content):
    file = folder / "mlflow.db"
    file.write_bytes(content or file.read_bytes()[:100_000])
    assert refusal(folder).endswith("; delete mlflow.db: it is made again from the records")


@pytest.mark.parametrize("kind", ["http", "postgresql"])
def test_a_server_that_is_down(folder, monkeypatch, kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(store.VARIABLE, f"{kind}://127.0.0.1:{port}")
    text = refusal(folder)
    assert text.startswith("MLFLOW_TRACKING_URI: ")
    assert str(port) in text
    assert "Connection refused" in text


def test_a_server_that_takes_connections_and_never_answers(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv(store.VARIABLE, f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr(store, "ANSWER_S", 0.2)
        assert "no answer in 0.2 seconds" in refusal(folder)


def test_a_given_file_that_is_no_database_is_named(folder, monkeypatch, tmp_path):
    (tmp_path / "text.db").write_text("some text")
    monkeypatch.setenv(store.VARIABLE, f"sqlite:///{tmp_path}/text.db")
    assert "text.db: file is not a database; name another store" in refusal(folder)


def test_other_errors_are_raised_unchanged():
    with pytest.raises(ZeroDivisionError), store.in_one_line("mlflow.db", ""):
        _ = 1 / 0


def test_a_copied_database_is_renamed_and_replaced(folder, made, tmp_path):
    """Writing into it would add files to the folder that it was copied from."""
    copy, said = tmp_path / "copied" / "study", []
    shutil.copytree(folder, copy)
    opened = store.open_store(copy, "study", said.append)
    location = opened.client.get_experiment(opened.experiment).artifact_location
    assert location == (copy / store.ARTEFACTS).as_uri()
    assert len(said) == 1
    assert f"a copy that keeps its files in {folder / store.ARTEFACTS}" in said[0]
    assert (copy / "mlflow-copied.db").is_file()
    store.open_store(copy, "study", said.append)
    assert len(said) == 1


def test_a_shared_store_keeps_no_files_of_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(store.VARIABLE, f"sqlite:///{folder}/mlflow.db")
    said = []
    assert store.open_store(folder, "study", said.append).keeps_files
    assert said == []
    assert not store.open_store(tmp_path / "elsewhere" / "study", "study", said.append).keeps_files
    assert "those of these results stay where they are" in said[0]


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "a?b", "a?b=1&c#d%"])
def test_the_database_lies_in_the_results_whatever_their_name(tmp_path, name):
    """Open it as MLflow does: by SQLAlchemy, from the URI."""
    from sqlalchemy import create_engine, text

    (tmp_path / name).mkdir()
    with create_engine(store.uri_of(tmp_path / name / "mlflow.db")).connect() as connection:
        connection.execute(text("create table t (x int)"))
        connection.commit()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [f"{name}/mlflow.db"]
