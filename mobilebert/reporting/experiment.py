"""Write a study's MLflow experiment: a parent run for a configuration, a child run for a record,
trials below it. In this module a run is an MLflow run."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mobilebert.jobs import locks
from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import Record
from mobilebert.jobs.underway import State
from mobilebert.reporting import reading
from mobilebert.reporting.store import open_store
from mobilebert.reporting.trials import trials
from mobilebert.study.code_hash import canonical, digest
from mobilebert.study.job import Graph
from mobilebert.study.schema import Study
from mobilebert.study.stages import VIEWS
from mobilebert.util.files import file_sha256

SMALL_ARTEFACT = 1 << 20  # bytes: pages and tables are copied into the store, weights are not
STATUS = {"ok": "FINISHED", "void": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "refused": "FAILED"}
# MLflow's limits on one batch and on texts.
METRICS_A_BATCH, PARAMS_A_BATCH, PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = (
    850,
    100,
    6000,
    5000,
    250,
)  # 1,000 entries a batch, with tags
LAST_STEP = 1 << 53  # a step is a 64-bit integer in the store

Say = Callable[[str], None]


class Experiment:
    """The study's experiment, with the parent run of this configuration and its child runs."""

    def __init__(self, results: Path, study: Study, graph: Graph, say: Say):
        self.study, self.results, self.say = study, results, say
        self.store = open_store((results / study.name).resolve(), study.name, say)
        self.client, self.experiment = self.store.client, self.store.experiment
        jobs = {key: job.fingerprint for key, job in graph.items() if job.stage not in VIEWS}
        self.configuration = digest(jobs)
        self.seen: dict[str, dict[str, set[int]]] = {}  # run -> curve -> steps that it has already
        self.read()
        self.changed = self.parent is None
        if self.parent is None:
            self.parent, self.ended_as = self._create_parent(), "RUNNING"

    def read(self) -> None:
        """Read all runs of the experiment and find the parent run among them."""
        self.children: dict[str, list] = {}  # fingerprint -> runs of this parent
        self.nested: dict[tuple[str, str], Any] = {}  # (child run, name) -> the run below it
        self.elsewhere: set[str] = set()  # fingerprints of records under other parents
        self.unfinished: list = []  # child runs of any parent that the store calls running
        self.parent, runs, token = None, [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        for run in runs:
            if run.data.tags.get("configuration") == self.configuration and "job" not in run.data.tags:
                self.parent, self.ended_as = run.info.run_id, run.info.status
        for run in runs:
            tags = run.data.tags
            if "job" in tags and "record" not in tags and run.info.status == "RUNNING":
                self.unfinished.append(run)
            if "job" in tags and tags.get("mlflow.parentRunId") == self.parent:
                self.children.setdefault(tags["fingerprint"], []).append(run)
            elif "record" in tags:
                self.elsewhere.add(tags["fingerprint"])
            elif "run" in tags:
                self.nested[tags["mlflow.parentRunId"], tags["run"]] = run

    def _create_parent(self) -> str:
        tags = {"configuration": self.configuration, "study": self.study.name}
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"{self.study.name}-{self.configuration[:8]}")
        self._log(run.info.run_id, [], self.study.model_dump(mode="json"), {})
        return run.info.run_id

    def close(self, status: str, cells: Callable[[], Mapping[str, int]]) -> None:
        """End the parent run with a status and the counts of `cells`, if anything has changed."""
        if self.changed or status != self.ended_as:
            assert self.parent is not None
            now = int(time.time() * 1000)
            self._log(self.parent, [(f"cells/{key}", value, now, 0) for key, value in cells().items()], {}, {})
            self.client.set_terminated(self.parent, status)

    def end_the_abandoned(self) -> None:
        """End the runs of killed jobs without a record. Skip a store of MLFLOW_TRACKING_URI: the
        job may run in another results folder."""
        for run in self.unfinished if self.store.is_own else ():
            job, fingerprint = run.data.tags["job"], run.data.tags["fingerprint"]
            state = self.results / self.study.name / ".state" / f"{job.replace('/', '-')}-{fingerprint[:16]}"
            now = self.client.get_run(run.info.run_id)
            if now.info.status == "RUNNING" and not locks.is_live(state):
                self._log(run.info.run_id, [], {}, {"status": "killed"})
                self.client.set_terminated(run.info.run_id, "KILLED")

    def add(self, record: Record) -> str:
        """Write the child run of a record; return "added", "there" or "completed": followed or
        killed before, or written with another status."""
        path = record_folder(self.results, self.study.name, record)  # a record has the stage and name of its job
        source = path / "result.json"
        content = file_sha256(source) if source.is_file() else digest(record.model_dump(mode="json"))
        mine = self.children.get(record.fingerprint, [])
        status, labels = reading.status(record), ", ".join(reading.labels(record))
        tags = {"status": status, "labels": labels, "record": content, "reason": reading.reason(record)}
        for run in mine:
            if run.data.tags.get("record") == content:
                if run.data.tags.get("status") == status:
                    return "there"
                self._log(run.info.run_id, [], {}, tags)  # it was written before views had the status `failed`
                self.client.set_terminated(run.info.run_id, STATUS[status], run.info.end_time)
                return "completed"
        self.changed = True
        begun = next((run for run in mine if "record" not in run.data.tags), None)
        started = reading.started(record.started)
        run_id = begun.info.run_id if begun else self._create(record.id, record.fingerprint, started)
        # MLflow orders a history by time first: these points must come after those streamed live.
        stamp = int(time.time() * 1000) if begun else started
        points = _metrics(record, started) + self._new_points(run_id, record.curves, stamp, fresh=begun is None)
        if record.fingerprint in self.elsewhere:
            tags["reused"] = "true"
        self._nest(run_id, record, path / "runs.jsonl")  # before the tag `record`, which marks the run as complete
        self._log(run_id, points, record.config, {key: value for key, value in tags.items() if value or key == "labels"})
        if self.store.keeps_files:
            self._keep(run_id, path, record)
        self.client.set_terminated(run_id, STATUS[status], started + int(reading.seconds(record) * 1000))
        return "completed" if begun else "added"

    def _keep(self, run_id: str, path: Path, record: Record) -> None:
        """Copy the record and its small artefacts into the store."""
        if (path / "result.json").is_file():
            self.client.log_artifact(run_id, str(path / "result.json"))
        for name, facts in record.artefacts.items():
            with contextlib.suppress(OSError, ValueError):  # a damaged record may name a file that cannot exist
                file = (path / name).resolve()
                size = reading.number(facts.get("bytes"))
                if size <= SMALL_ARTEFACT and file.is_relative_to(path.resolve()) and file.is_file():
                    below = file.relative_to(path.resolve()).parent.as_posix()
                    self.client.log_artifact(run_id, str(file), below if below != "." else None)

    def _nest(self, run_id: str, record: Record, path: Path) -> None:
        """Write a run below `run_id` for every line of runs.jsonl without a finished run."""
        found, damaged = trials(path)
        if damaged:
            say = f"{record.id}: runs.jsonl: {damaged} lines are damaged; left out of MLflow"
            self.say(say)
        for trial in found:
            below = self.nested.get((run_id, trial.name))
            if below and below.info.status != "RUNNING":
                continue
            if below is None:
                tags = {"mlflow.parentRunId": run_id, "study": self.study.name, "run": trial.name}
                below = self.client.create_run(
                    self.experiment, start_time=trial.started, tags=_tags(tags), run_name=trial.name[:KEY_LENGTH]
                )
            values = [(key, value, trial.started, 0) for key, value in trial.metrics.items()]
            self._log(below.info.run_id, values, trial.params, trial.tags)
            failed = trial.tags["status"] in ("failed", "diverged")
            end = trial.started + int(trial.seconds * 1000)
            self.client.set_terminated(below.info.run_id, "FAILED" if failed else "FINISHED", end)

    def add_killed(self, state: State) -> str:
        """Write the child run of a killed job; return "added", "completed" or "there"."""
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
        """Write new points of a running job into its child run; return how many."""
        begun = self._begun(state.fingerprint)
        if begun is None:
            run_id = self._create(state.job, state.fingerprint, state.started)
            self._log(run_id, [], state.config, {})
        else:
            run_id = begun.info.run_id
            if begun.info.status != "RUNNING":  # the job was killed before and has resumed
                self.client.update_run(run_id, status="RUNNING")
                self._log(run_id, [], {}, {"status": "running"})
                self.children[state.fingerprint].remove(begun)
        if begun is None or begun.info.status != "RUNNING":
            self.children.setdefault(state.fingerprint, []).append(self.client.get_run(run_id))
        points = self._new_points(run_id, _curves(lines), int(time.time() * 1000), fresh=begun is None)
        self._log(run_id, points, {}, {})
        return len(points)

    def _begun(self, fingerprint: str):
        """Return the child run that was followed or killed and has no record; None if none."""
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
        """Write points (key, value, milliseconds, step), parameters and tags in few batches."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(_key(key), value, stamp, step) for key, value, stamp, step in points]
        named = {_key(key): text[:PARAM_LENGTH] for key, text in flatten(config).items()}
        params = [Param(key, text) for key, text in named.items()]
        labels = [RunTag(key, value) for key, value in _tags(tags).items()]
        while metrics or params or labels:
            self.client.log_batch(run_id, metrics[:METRICS_A_BATCH], params[:PARAMS_A_BATCH], labels)
            metrics, params, labels = metrics[METRICS_A_BATCH:], params[PARAMS_A_BATCH:], []

    def _new_points(self, run_id: str, curves: Mapping[str, list], stamp: int, fresh: bool) -> list:
        """Return the points of new steps: a resumed job repeats those after its checkpoint."""
        points, seen = [], self.seen.setdefault(run_id, {})
        for name, values in curves.items():
            key = _key(f"curves/{name}")
            if key not in seen:
                seen[key] = set() if fresh else {point.step for point in self.client.get_metric_history(run_id, key)}
            for step, value in values:
                if step not in seen[key] and reading.is_number(value) and abs(step) < LAST_STEP:
                    seen[key].add(step)
                    points.append((key, value, stamp, step))
        return points


def flatten(config: Mapping, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one with dotted keys and texts as values."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value) -> str:
    with contextlib.suppress(ValueError):  # JSON has no NaN, which a list may hold
        return canonical(value) if isinstance(value, list | tuple) else str(value)
    return str(value)


def _key(name: str) -> str:
    """Return the name of a metric or parameter with only the characters that MLflow accepts."""
    name = "/".join(part.strip(".") or "_" for part in re.sub(r"[^/\w.\- :]", "_", name).split("/"))
    return name[:KEY_LENGTH].rstrip("/")


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[:TAG_LENGTH] for key, value in tags.items()}


def _metrics(record: Record, stamp: int) -> list[tuple[str, float, int, int]]:
    """Return the points of the final metrics and of their raw samples, whose number is the step."""
    points: list[tuple[str, Any, int, int]] = [(key, value, stamp, 0) for key, value in record.metrics.items()]
    for key, values in record.samples.items():
        points += [(f"samples/{key}", value, stamp, index) for index, value in enumerate(values)]
    return [point for point in points if reading.is_number(point[1])]


def _curves(lines: Iterable[dict]) -> dict[str, list[tuple[int, float | None]]]:
    curves: dict[str, list] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step":
                curves.setdefault(key, []).append((line["step"], value))
    return curves
