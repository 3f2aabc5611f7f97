"""Open the MLflow store of a study within seconds, or refuse it in one line that says what to do.

MLflow alone fails with a traceback after many retries: 107 seconds for a file that is no database,
four minutes for a server that is down. So this module checks both before MLflow opens them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import socket
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from mobilebert.util.errors import UserError
from mobilebert.util.text import cut, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
ARTEFACTS = "mlartifacts"  # beside mlflow.db
ANSWER_S = 2.0  # how long a server may take to accept a connection, and again to answer
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the server has just answered the check
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@dataclass(frozen=True)
class Store:
    """An open store. `keeps_files`: whether artefacts are copied to it."""

    client: MlflowClient
    experiment: str
    keeps_files: bool
    is_own: bool  # it is `mlflow.db` beside the results; MLFLOW_TRACKING_URI is not set
    uri: str


def uri_of(database: Path) -> str:
    """Return the URI of a SQLite file; quote a path with "?", which would begin options."""
    if "?" not in str(database):
        return f"sqlite:///{database}"
    return f"sqlite+pysqlite:///file:{quote(str(database))}?uri=true"


def database_of(uri: str) -> Path | None:
    """Return the SQLite file that a URI names; None if it names none."""
    from sqlalchemy.engine import make_url

    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    name = make_url(uri).database or ":memory:"
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
    return None if name == ":memory:" else Path(name)


@contextlib.contextmanager
def in_one_line(what: str, hint: str) -> Iterator[None]:
    """Turn every error of the store in this block into a UserError of one line."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _troubles()):
            raise
        first_sentence = one_line(str(error)).partition(". ")[0]
        raise UserError(f"{what}: {cut(first_sentence, 200)}{hint}") from None


def _troubles() -> tuple[type[Exception], ...]:
    """Return the errors of MLflow and its libraries; imported here, because that takes seconds."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError, RequestException, sqlite3.Error


def trouble(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Return `in_one_line` for the store of a study's folder: its name, and what to do."""
    given = os.environ.get(VARIABLE)
    if given:
        return in_one_line(VARIABLE, "")
    return in_one_line(str(folder / "mlflow.db"), _rebuilt(folder / "mlflow.db"))


def _rebuilt(database: Path) -> str:
    return f"; delete {database.name}: it is made again from the records"


@contextlib.contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Hold the lock of the store of a study's folder, and wait for it.

    Processes that create a database at the same time break it, and two that log one model log it
    twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".mlflow.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def open_store(folder: Path, study: str, say: Callable[[str], None]) -> Store:
    """Open the store that MLFLOW_TRACKING_URI names, or else `mlflow.db` in the study's folder, and
    find or create the experiment.

    A database copied from another folder shows that folder's records and writes its files there: it
    is renamed, with one line, and a new one is created. Raises UserError if the store cannot open.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    given, database = os.environ.get(VARIABLE), folder / "mlflow.db"
    uri = given or uri_of(database)
    if given:
        _check_given(uri)
    else:
        _check_database(database, str(database), _rebuilt(database))
        _put_a_copy_aside(database, study, say)
    with trouble(folder):
        from mlflow import MlflowClient  # takes seconds, and only tracking needs it

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs a traceback of each error that it raises
        _write_fast()
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            location = None if uri.startswith("http") else (folder / ARTEFACTS).as_uri()  # a server places its files itself
            return Store(client, client.create_experiment(study, artifact_location=location), True, not given, uri)
    if experiment.lifecycle_stage == "deleted":
        command = f"{VARIABLE}={shlex.quote(uri)} mlflow experiments restore --experiment-id {experiment.experiment_id}"
        other = "" if given else f", or delete {database.name}: it is made again from the records"
        where = VARIABLE if given else database
        raise UserError(f"{where}: experiment {study!r} was deleted; restore it: {command}{other}")
    elsewhere = _other_folder(experiment.artifact_location, folder)
    if elsewhere:
        say(f"{VARIABLE}: experiment {study!r} keeps its files in {elsewhere}; those of these results stay where they are")
    return Store(client, experiment.experiment_id, elsewhere is None, not given, uri)


def _check_given(uri: str) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in ("http", "https"):
        _check_server(uri)
    elif kind == "sqlite":
        if file := database_of(uri):
            _check_database(file, f"{VARIABLE}: {file}", "; name another store, or unset the variable")
    elif parts.hostname and (port := parts.port or PORTS.get(kind)):
        try:
            socket.create_connection((parts.hostname, port), timeout=ANSWER_S).close()
        except OSError as error:
            raise UserError(f"{VARIABLE}: {parts.hostname}:{port} does not answer: {error.strerror or error}") from None


def _check_server(uri: str) -> None:
    """Raise UserError if nothing answers. MLflow handles every answer, even an error."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_S)
    except requests.exceptions.SSLError:
        return
    except requests.exceptions.RequestException as error:
        late = isinstance(error, requests.exceptions.Timeout)
        reason = f"no answer in {ANSWER_S:g} seconds" if late else _cause(error)
        raise UserError(f"{VARIABLE}: {uri}: {reason}; start the server, or unset the variable for mlflow.db") from None


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a failed request: the outer ones repeat the address."""
    reason: BaseException | None = error
    while reason is not None and not (isinstance(reason, OSError) and reason.strerror):
        inner = [item for item in (*reason.args, getattr(reason, "reason", None)) if isinstance(item, BaseException)]
        reason = inner[0] if inner else reason.__cause__ or reason.__context__
    return reason.strerror if isinstance(reason, OSError) and reason.strerror else cut(str(error), 120)


def _check_database(path: Path, what: str, hint: str) -> None:
    """Raise UserError if the file is there and SQLite cannot read it."""
    try:
        if path.exists():
            _select(path, "select count(*) from sqlite_master", ())
    except sqlite3.Error as error:
        raise UserError(f"{what}: {error}{hint}") from None


def _select(path: Path, query: str, values: tuple) -> list[tuple]:
    # Not read-only: this process may have to roll back the transaction of a killed one.
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=ANSWER_S)) as connection:
        return connection.execute(query, values).fetchall()


def _put_a_copy_aside(database: Path, study: str, say: Callable[[str], None]) -> None:
    """Rename a database with files in another folder. MLflow must not have opened it yet:
    it keeps connections."""
    found: list[tuple] = []
    with contextlib.suppress(sqlite3.OperationalError):  # MLflow has not created its tables yet
        if database.exists():
            found = _select(database, "select artifact_location from experiments where name = ?", (study,))
    elsewhere = _other_folder(found[0][0], database.parent) if found else None
    if elsewhere:
        aside = database.with_name("mlflow-copied.db")
        database.replace(aside)
        say(
            f"{database}: a copy that keeps its files in {elsewhere}; renamed to {aside.name}, a new one is made from the records"
        )


def _other_folder(location: str | None, folder: Path) -> Path | None:
    """Return the folder of an experiment's files if it belongs to other results; else None."""
    parts = urlsplit(location or "")
    path = Path(unquote(parts.path))
    if parts.scheme not in ("", "file") or path.name != ARTEFACTS or path.resolve() == (folder / ARTEFACTS).resolve():
        return None
    return path


def _write_fast() -> None:
    """Switch off SQLite's wait for the disk, which costs more than all else in hundreds of small
    transactions. A database that a power cut breaks is built again from the records."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _do_not_sync):
        event.listen(Engine, "connect", _do_not_sync)


def _do_not_sync(connection, _) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
