"""Records as MLflow runs: a view of the results folder that can be rebuilt from it at any time.

A parent run stands for one resolved configuration of a study, a child run for one record; below it lie the runs of its
runs.jsonl, the settings of a search and the seeds. What is already there is found by its tags, so ingesting twice adds
nothing. The store is `<results>/<study>/mlflow.db`, or what MLFLOW_TRACKING_URI names: one for all studies, an experiment each.
Its files lie beside the results, those of a server where it wants them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from mobilebert import records
from mobilebert.config import Study
from mobilebert.errors import UserError
from mobilebert.jobs import Graph, canonical, digest
from mobilebert.records import Record
from mobilebert.reporting.underway import State

VIEWS = ("report", "track", "check")  # stages that only look at the others' records
SMALL_ARTEFACT = 1 << 20  # bytes: pages and tables go into the store, weights stay where they are
STATUS = {"ok": "FINISHED", "void": "FINISHED", "diverged": "FAILED", "refused": "FAILED"}
# MLflow's limits on one batch and on a parameter's text.
METRICS_A_BATCH, PARAMS_A_BATCH, PARAM_LENGTH = 850, 100, 6000  # 1,000 entries a batch, tags among them


def ingest(results: Path, study: Study, graph: Graph, found: Mapping[str, Record]) -> dict[str, int]:
    """Bring the store up to the records `found` (job id -> current record) and to the runs that were killed.

    Returns how many child runs were added, completed (a run that was followed or killed before) or were there already.
    """
    counts = {"added": 0, "completed": 0, "there": 0}
    with _writer(results / study.name):
        store = _Store(results, study, graph)
        for record in [*found.values(), *_refused(results, study.name, graph, found)]:
            if record.stage not in VIEWS:
                counts[store.add(record)] += 1
        for state in _states(results, study.name, graph):
            if state.job not in found and not state.alive and not state.has_record:
                counts[store.add_killed(state)] += 1
        store.close()
    return counts


def follow(
    results: Path,
    study: Study,
    graph: Graph,
    stop: threading.Event | None = None,
    interval: float = 2.0,
    patience: float = 30.0,
) -> int:
    """Stream the curves of runs under way into their child runs until `stop` is set, or no process has held a result's
    lock for `patience` seconds. Returns the number of points streamed; `ingest` completes the same runs later."""
    stop = stop or threading.Event()
    offsets: dict[Path, int] = {}
    with _writer(results / study.name):
        store = _Store(results, study, graph)
    points, last_seen = 0, time.monotonic()
    while True:
        with _writer(results / study.name):
            for state in _states(results, study.name, graph):
                if state.alive:
                    last_seen = time.monotonic()
                    lines, offsets[state.folder] = state.points(offsets.get(state.folder, 0))
                    points += store.stream(state, lines)
        if stop.is_set() or time.monotonic() - last_seen >= patience:
            return points
        stop.wait(interval)


@contextlib.contextmanager
def _writer(folder: Path):
    """One writer at a time, the others wait: processes that create one fresh database together leave it broken."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".mlflow.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# --- what lies in the results folder


def _states(results: Path, study: str, graph: Graph) -> list[State]:
    found = []
    for path in sorted((results / study / ".state").glob("*/run.json")):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # it ended, or begins, this moment
            found.append(State(path.parent, results, study, graph))
    return [state for state in found if state.known and state.job.partition("/")[0] not in VIEWS]


def _refused(results: Path, study: str, graph: Graph, found: Mapping[str, Record]) -> Iterable[Record]:
    """Records of refused runs, which count as stale so that the run is tried again."""
    for key, job in graph.items():
        path = records.file(results, study, job)
        if key not in found and path.exists():
            with contextlib.suppress(UserError):
                record = records.read(path)
                if record.status == "refused" and record.fingerprint == job.fingerprint:
                    yield record


# --- what lies in the store


def _do_not_sync(connection, _) -> None:
    """Hundreds of small transactions, each waiting for the disk, take longer than all the rest; a database that a power
    cut breaks is made again from the records."""
    connection.execute("PRAGMA synchronous=OFF")


class _Store:
    """The study's experiment and, in it, the parent run of this configuration with its children."""

    def __init__(self, results: Path, study: Study, graph: Graph):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient  # takes seconds, and only tracking needs it
        from mlflow.exceptions import MlflowException
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        if not event.contains(Engine, "connect", _do_not_sync):
            event.listen(Engine, "connect", _do_not_sync)
        self.study, self.results = study, results
        self.folder = (results / study.name).resolve()
        given = os.environ.get("MLFLOW_TRACKING_URI")
        uri = given or f"sqlite:///{self.folder / 'mlflow.db'}"
        try:
            self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            self.experiment = self._experiment(served=uri.startswith("http"))
        except MlflowException as error:
            if given:
                raise UserError(f"MLFLOW_TRACKING_URI: {' '.join(str(error).split())}") from None
            raise
        jobs = {key: job.fingerprint for key, job in graph.items() if job.stage not in VIEWS}
        self.configuration = digest(jobs)
        self.children: dict[str, list] = {}  # fingerprint -> runs of this parent
        self.nested: dict[tuple[str, str], object] = {}  # (child run, name) -> the run below it
        self.elsewhere: set[str] = set()  # fingerprints of records under other parents
        self.seen: dict[str, dict[str, set[int]]] = {}  # run -> curve -> steps already there
        self.parent = self._find_parent()
        self.changed = self.parent is None
        if self.parent is None:
            self.parent = self._create_parent()

    def _experiment(self, served: bool) -> str:
        """Id of the study's experiment. served: a server keeps its files."""
        experiment = self.client.get_experiment_by_name(self.study.name)
        if experiment:
            return experiment.experiment_id
        location = None if served else (self.folder / "mlartifacts").as_uri()
        return self.client.create_experiment(self.study.name, artifact_location=location)

    def _find_parent(self) -> str | None:
        parent, runs, token = None, [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        for run in runs:
            if run.data.tags.get("configuration") == self.configuration and "job" not in run.data.tags:
                parent = run.info.run_id
        for run in runs:
            tags = run.data.tags
            if "job" in tags and tags.get("mlflow.parentRunId") == parent:
                self.children.setdefault(tags["fingerprint"], []).append(run)
            elif "record" in tags:
                self.elsewhere.add(tags["fingerprint"])
            elif "run" in tags:
                self.nested[tags["mlflow.parentRunId"], tags["run"]] = run
        return parent

    def _create_parent(self) -> str:
        tags = {"configuration": self.configuration, "study": self.study.name}
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"{self.study.name}-{self.configuration[:8]}")
        self._log(run.info.run_id, [], self.study.model_dump(mode="json"), {})
        return run.info.run_id

    def close(self) -> None:
        if self.changed:
            self.client.set_terminated(self.parent, "FINISHED")

    def add(self, record: Record) -> str:
        """The child run of one record: added, completed where it was followed or killed before, or there already."""
        path = records.folder(self.results, self.study.name, record)  # a record has the stage and name of its job
        source = path / "result.json"
        content = records.sha256(source) if source.is_file() else digest(record.model_dump(mode="json"))
        mine = self.children.get(record.fingerprint, [])
        if any(run.data.tags.get("record") == content for run in mine):
            return "there"
        self.changed = True
        begun = next((run for run in mine if "record" not in run.data.tags), None)
        started = _milliseconds(record.started)
        run_id = begun.info.run_id if begun else self._create(record.id, record.fingerprint, started)
        # A history is ordered by time first: what completes a followed run must not come before its live points.
        stamp = int(time.time() * 1000) if begun else started
        points = _metrics(record, started) + self._new_points(run_id, record.curves, stamp, fresh=begun is None)
        tags = {"status": record.status, "labels": ", ".join(record.labels), "record": content}
        if record.reason:
            tags["reason"] = record.reason
        if record.fingerprint in self.elsewhere:
            tags["reused"] = "true"
        self._nest(run_id, path / "runs.jsonl")  # before the tag that says that all of this record is there
        self._log(run_id, points, record.config, tags)
        if source.is_file():
            self.client.log_artifact(run_id, str(source))
        for name, facts in record.artefacts.items():
            if facts.get("bytes", SMALL_ARTEFACT + 1) <= SMALL_ARTEFACT and (path / name).is_file():
                self.client.log_artifact(run_id, str(path / name), str(Path(name).parent) if "/" in name else None)
        self.client.set_terminated(run_id, STATUS[record.status], started + int(record.seconds * 1000))
        return "completed" if begun else "added"

    def _nest(self, run_id: str, path: Path) -> None:
        """A run below `run_id` for every line of a job's runs.jsonl that has none yet, or one that was not finished."""
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        for line in map(json.loads, filter(None, lines)):
            below, started = self.nested.get((run_id, line["run"])), _milliseconds(line["started"])
            if below and below.info.status != "RUNNING":
                continue
            if below is None:
                tags = {"mlflow.parentRunId": run_id, "study": self.study.name, "run": line["run"]}
                below = self.client.create_run(self.experiment, start_time=started, tags=tags, run_name=line["run"])
            values = [(key, value, started, 0) for key, value in line["metrics"].items() if _is_finite(value)]
            params = {**line["setting"], "seed": line["seed"], "part": line["part"]}
            self._log(below.info.run_id, values, params, {key: line[key] or "" for key in ("role", "status", "reason")})
            end = started + int(line["seconds"] * 1000)
            self.client.set_terminated(below.info.run_id, "FAILED" if line["status"] == "diverged" else "FINISHED", end)

    def add_killed(self, state: State) -> str:
        """The child run of a state folder that no process holds any more."""
        begun = self._begun(state.fingerprint)
        fresh = begun is None
        if begun and begun.info.status == "KILLED" and begun.info.end_time == state.ended:
            return "there"
        self.changed = True
        run_id = begun.info.run_id if begun else self._create(state.job, state.fingerprint, state.started)
        points = self._new_points(run_id, _curves(state.points()[0]), state.started, fresh)
        self._log(run_id, points, state.config, {"status": "killed"})
        self.client.set_terminated(run_id, "KILLED", state.ended)
        return "added" if fresh else "completed"

    def stream(self, state: State, lines: list[dict]) -> int:
        """New points of a run under way into its child run; returns how many."""
        begun = self._begun(state.fingerprint)
        if begun is None:
            run_id = self._create(state.job, state.fingerprint, state.started)
            self._log(run_id, [], state.config, {})
        else:
            run_id = begun.info.run_id
            if begun.info.status != "RUNNING":  # it was killed before and goes on
                self.client.update_run(run_id, status="RUNNING")
                self._log(run_id, [], {}, {"status": "running"})
                self.children[state.fingerprint].remove(begun)
        if begun is None or begun.info.status != "RUNNING":
            self.children.setdefault(state.fingerprint, []).append(self.client.get_run(run_id))
        points = self._new_points(run_id, _curves(lines), int(time.time() * 1000), fresh=begun is None)
        self._log(run_id, points, {}, {})
        return len(points)

    def _begun(self, fingerprint: str):
        """The child run that was followed or killed and has no record yet."""
        return next((run for run in self.children.get(fingerprint, []) if "record" not in run.data.tags), None)

    def _create(self, job: str, fingerprint: str, started: int) -> str:
        tags = {
            "mlflow.parentRunId": self.parent,
            "job": job,
            "stage": job.partition("/")[0],
            "study": self.study.name,
            "fingerprint": fingerprint,
            "status": "running",
        }
        return self.client.create_run(self.experiment, start_time=started, tags=tags, run_name=job).info.run_id

    def _log(self, run_id: str, points: list[tuple[str, float, int, int]], config: dict, tags: dict[str, str]) -> None:
        """Points (key, value, milliseconds, step), parameters and tags, in as few batches as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(key, value, stamp, step) for key, value, stamp, step in points]
        params = [Param(key, text[:PARAM_LENGTH]) for key, text in flatten(config).items()]
        labels = [RunTag(key, value) for key, value in tags.items()]
        while metrics or params or labels:
            self.client.log_batch(run_id, metrics[:METRICS_A_BATCH], params[:PARAMS_A_BATCH], labels)
            metrics, params, labels = metrics[METRICS_A_BATCH:], params[PARAMS_A_BATCH:], []

    def _new_points(self, run_id: str, curves: Mapping[str, list], stamp: int, fresh: bool) -> list:
        """Points whose step the run does not have yet: a resumed run repeats those after its last checkpoint."""
        points, seen = [], self.seen.setdefault(run_id, {})
        for name, values in curves.items():
            key = f"curves/{name}"
            if key not in seen:
                seen[key] = set() if fresh else {point.step for point in self.client.get_metric_history(run_id, key)}
            for step, value in values:
                if step not in seen[key] and value is not None and math.isfinite(value):
                    seen[key].add(step)
                    points.append((key, value, stamp, step))
        return points


def flatten(config: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; everything else as text."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = canonical(value) if isinstance(value, list | tuple) else str(value)
    return flat


def _metrics(record: Record, stamp: int) -> list[tuple[str, float, int, int]]:
    """Final metrics, and the raw samples behind them with the sample's number as the step."""
    points = [(key, value, stamp, 0) for key, value in record.metrics.items()]
    for key, values in record.samples.items():
        points += [(f"samples/{key}", value, stamp, index) for index, value in enumerate(values)]
    return [point for point in points if _is_finite(point[1])]


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curves(lines: Iterable[dict]) -> dict[str, list[tuple[int, float | None]]]:
    curves: dict[str, list] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step":
                curves.setdefault(key, []).append((line["step"], value))
    return curves


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000) if moment else 0
