"""Write a study's MLflow experiment: a parent run for a configuration, a child run for a record,
trials below it. In this module a run is an MLflow run.

A record that an earlier configuration has logged is not logged again: the tag `used_by` of its
run names the further parents.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mobilebert.jobs import locks
from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import Record
from mobilebert.jobs.underway import State
from mobilebert.reporting import reading, run_writer
from mobilebert.reporting.run_inputs import data_sets
from mobilebert.reporting.run_params import SHARED, flatten, shared, without_shared
from mobilebert.reporting.run_texts import child_tags, headline, model_of, parent_tags, run_name, task_of, user
from mobilebert.reporting.run_writer import Point, key_of, short
from mobilebert.reporting.store import open_store
from mobilebert.reporting.trials import trials
from mobilebert.study.code_hash import digest
from mobilebert.study.job import Graph
from mobilebert.study.schema import Study
from mobilebert.study.stages import VIEWS
from mobilebert.util.files import file_sha256

LAYOUT = "2"  # of names, tags and parameters; runs of another layout are not touched
SMALL_ARTEFACT = 1 << 20  # bytes: tables are copied into the store, weights are not; predictions always are
STATUS = {"ok": "FINISHED", "void": "FAILED", "failed": "FAILED", "diverged": "FAILED", "refused": "FAILED"}
LAST_STEP = 1 << 53  # a step is a 64-bit integer in the store
STUDY_FILE = "study.json"  # artefact of the parent: the study as it was read

Say = Callable[[str], None]


class Experiment:
    """The study's experiment, with the parent run of this configuration and its child runs."""

    def __init__(self, results: Path, study: Study, graph: Graph, say: Say):
        self.study, self.results, self.say = study, results, say
        self.store = open_store((results / study.name).resolve(), study.name, say)
        self.client, self.experiment = self.store.client, self.store.experiment
        self.shared = shared(graph)
        jobs = {key: job.fingerprint for key, job in graph.items() if job.stage not in VIEWS}
        self.configuration = digest(jobs)
        self.seen: dict[str, dict[str, set[int]]] = {}  # run -> curve -> steps that it has already
        self.parent: str | None = None
        self.read()
        self.changed = self.parent is None
        if self.parent is None:
            self.parent, self.ended_as, self.known_metrics = self._create_parent(), "RUNNING", {}
        elif self.ended_as == "RUNNING":  # the process that created it may have been killed before it described it
            self._describe(self.parent)

    def read(self) -> None:
        """Read all runs of the experiment and find the parent run among them."""
        self.children: dict[str, list] = {}  # fingerprint -> runs of this parent
        self.nested: dict[tuple[str, str], Any] = {}  # (child run, name) -> the run below it
        self.elsewhere: dict[str, Any] = {}  # hash of a record -> its run under another parent
        self.unfinished: list = []  # child runs of any parent that the store calls running
        self.parent, runs, token = None, [], None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        runs = [run for run in runs if run.data.tags.get("layout") == LAYOUT]
        for run in runs:
            if run.data.tags.get("configuration") == self.configuration and "job" not in run.data.tags:
                self.parent, self.ended_as, self.known_metrics = run.info.run_id, run.info.status, run.data.metrics
        for run in runs:
            tags = run.data.tags
            if "job" in tags and "record" not in tags and run.info.status == "RUNNING":
                self.unfinished.append(run)
            if "job" in tags and self.parent in (tags.get("mlflow.parentRunId"), *tags.get("used_by", "").split()):
                self.children.setdefault(tags["fingerprint"], []).append(run)
            elif "record" in tags:
                self.elsewhere[tags["record"]] = run
            elif "run" in tags:
                self.nested[tags["mlflow.parentRunId"], tags["run"]] = run

    def _create_parent(self) -> str:
        tags = {"configuration": self.configuration, "study": self.study.name, "layout": LAYOUT}
        tags |= parent_tags(self.study.name, self.study.description, {}) | user()
        name = f"{self.study.name}-{self.configuration[:8]}"
        run = self.client.create_run(self.experiment, tags=short(tags), run_name=name)
        self._describe(run.info.run_id)
        return run.info.run_id

    def _describe(self, parent: str) -> None:
        """Write the study into the parent run: as parameters, and as a file."""
        same = {f"{SHARED}{key}": text for key, text in self.shared.items()}
        self._log(parent, [], flatten(self.study.model_dump(mode="json")) | same, {})
        if self.store.keeps_files:
            content = self.study.model_dump_json(by_alias=True, exclude_unset=True, indent=1)
            self.client.log_text(parent, content, STUDY_FILE)

    def _reopen(self) -> None:
        """Call the parent running, so that a kill before `close` leaves it to the next process."""
        if self.parent and not self.changed and self.ended_as != "RUNNING":
            self.client.update_run(self.parent, status="RUNNING")
            self.ended_as = "RUNNING"
        self.changed = True

    def close(self, status: str, found: Mapping[str, Record], cells: Callable[[], Mapping[str, int]]) -> None:
        """End the parent run with a status, headline metrics and the counts of `cells`, if anything
        has changed."""
        metrics: dict[str, float] = headline(found)
        is_known = all(self.known_metrics.get(key_of(key)) == value for key, value in metrics.items())
        if self.changed or status != self.ended_as or not is_known:
            assert self.parent is not None
            now = int(time.time() * 1000)
            metrics |= {f"cells/{key}": value for key, value in cells().items()}
            fresh = {key: value for key, value in metrics.items() if self.known_metrics.get(key_of(key)) != value}
            tags = parent_tags(self.study.name, self.study.description, found)
            self._log(self.parent, [(key, value, now, 0) for key, value in fresh.items()], {}, tags)
            sets = dict.fromkeys(item for record in found.values() for item in data_sets(record, found))
            run_writer.log_data_sets(self.client, self.parent, sets)
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

    def add(self, record: Record, found: Mapping[str, Record]) -> str:
        """Write the child run of a record; return "added", "there" or "completed": followed or
        killed before, or written with another status.

        found: all current records, among them that of the data.
        """
        path = record_folder(self.results, self.study.name, record)  # a record has the stage and name of its job
        source = path / "result.json"
        content = file_sha256(source) if source.is_file() else digest(record.model_dump(mode="json"))
        mine = self.children.get(record.fingerprint, [])
        status, labels = reading.status(record), ", ".join(reading.labels(record))
        tags = {"status": status, "labels": labels, "reason": reading.reason(record)} | child_tags(record)
        for run in [*mine, *filter(None, [self.elsewhere.get(content)])]:
            if run.data.tags.get("record") == content and self._share(run):
                if run.data.tags.get("status") == status:
                    return "there"
                self._log(run.info.run_id, [], {}, tags)  # it was written before views had the status `failed`
                self.client.set_terminated(run.info.run_id, STATUS[status], run.info.end_time)
                return "completed"
        self._reopen()
        begun = next((run for run in mine if "record" not in run.data.tags), None)
        started = reading.started(record.started)
        run_id = begun.info.run_id if begun else self._create(record.id, record.fingerprint, started)
        # MLflow orders a history by time first: these points must come after those streamed live.
        stamp = int(time.time() * 1000) if begun else started
        points = _metrics(record, started) + self._new_points(run_id, record.curves, stamp, fresh=begun is None)
        self._nest(run_id, record, path / "runs.jsonl")
        own, left_out = without_shared(record.config, self.shared)
        tags["shared_params"] = " ".join(left_out)
        self._log(run_id, points, own, {key: value for key, value in tags.items() if value or key == "labels"})
        run_writer.log_data_sets(self.client, run_id, data_sets(record, found))
        if self.store.keeps_files:
            self._keep(run_id, path, record)
        self.client.set_terminated(run_id, STATUS[status], started + int(reading.seconds(record) * 1000))
        self.client.set_tag(run_id, "record", content)  # last: a run without it is written again
        return "completed" if begun else "added"

    def _share(self, run) -> bool:
        """Return whether a run counts for this parent; add the parent to its `used_by`."""
        tags = run.data.tags
        others = tags.get("used_by", "").split()
        if self.parent in (tags.get("mlflow.parentRunId"), *others):
            return True
        users = " ".join((*others, self.parent or ""))
        if len(users) > run_writer.TAG_LENGTH:  # about 150 parents: log the record again
            return False
        self._reopen()
        self.client.set_tag(run.info.run_id, "used_by", users)
        return True

    def _keep(self, run_id: str, path: Path, record: Record) -> None:
        """Copy the record, its predictions and its small artefacts into the store."""
        if (path / "result.json").is_file():
            self.client.log_artifact(run_id, str(path / "result.json"))
        for name, facts in record.artefacts.items():
            with contextlib.suppress(OSError, ValueError):  # a damaged record may name a file that cannot exist
                file = (path / name).resolve()
                size = reading.number(facts.get("bytes"))
                if (
                    (size <= SMALL_ARTEFACT or name in record.predictions)
                    and file.is_relative_to(path.resolve())
                    and file.is_file()
                ):
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
                tags = {"mlflow.parentRunId": run_id, "study": self.study.name, "run": trial.name, "layout": LAYOUT}
                name = f"{trial.name} {run_name(record.id)}"[: run_writer.KEY_LENGTH]
                below = self.client.create_run(self.experiment, start_time=trial.started, tags=short(tags), run_name=name)
            values = [(key, value, trial.started, 0) for key, value in trial.metrics.items()]
            self._log(below.info.run_id, values, flatten(trial.params), trial.tags)
            failed = trial.tags["status"] in ("failed", "diverged")
            end = trial.started + int(trial.seconds * 1000)
            self.client.set_terminated(below.info.run_id, "FAILED" if failed else "FINISHED", end)

    def add_killed(self, state: State) -> str:
        """Write the child run of a killed job; return "added", "completed" or "there"."""
        begun = self._begun(state.fingerprint)
        fresh = begun is None
        if begun and begun.info.status == "KILLED" and begun.info.end_time == state.ended:
            return "there"
        self._reopen()
        run_id = begun.info.run_id if begun else self._create(state.job, state.fingerprint, state.started)
        points = self._new_points(run_id, _curves(state.points()[0]), state.started, fresh)
        self._log(run_id, points, without_shared(state.config, self.shared)[0], {"status": "killed"})
        self.client.set_terminated(run_id, "KILLED", state.ended)
        return "added" if fresh else "completed"

    def stream(self, state: State, lines: list[dict]) -> int:
        """Write new points of a running job into its child run; return how many."""
        begun = self._begun(state.fingerprint)
        if begun is None:
            self._reopen()
            run_id = self._create(state.job, state.fingerprint, state.started)
            self._log(run_id, [], without_shared(state.config, self.shared)[0], {})
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
            "model": model_of(job),
            "task": task_of(job),
            "study": self.study.name,
            "fingerprint": fingerprint,
            "status": "running",
            "layout": LAYOUT,
        } | user()
        tags = {key: value for key, value in tags.items() if value}
        return self.client.create_run(self.experiment, start_time=started, tags=tags, run_name=run_name(job)).info.run_id

    def _log(self, run_id: str, points: list[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        run_writer.log(self.client, run_id, points, params, tags)

    def _new_points(self, run_id: str, curves: Mapping[str, list], stamp: int, fresh: bool) -> list:
        """Return the points of new steps: a resumed job repeats those after its checkpoint."""
        points, seen = [], self.seen.setdefault(run_id, {})
        for name, values in curves.items():
            key = key_of(f"curves/{name}")
            if key not in seen:
                seen[key] = set() if fresh else {point.step for point in self.client.get_metric_history(run_id, key)}
            for step, value in values:
                if step not in seen[key] and reading.is_number(value) and abs(step) < LAST_STEP:
                    seen[key].add(step)
                    points.append((key, value, stamp, step))
        return points


def _metrics(record: Record, stamp: int) -> list[Point]:
    """Return the points of the final metrics and of their raw samples, whose number is the step."""
    points: list[tuple[str, Any, int, int]] = [(key, value, stamp, 0) for key, value in record.metrics.items()]
    for key, values in record.samples.items():
        points += [(f"samples/{key}", value, stamp, index) for index, value in enumerate(values)]
    for key, pairs in record.usage.items():  # MLflow shows names that begin with system/ on a page of their own
        moments = [(stamp + int(reading.duration(seconds) * 1000), value) for seconds, value in pairs]
        points += [(f"system/{key}", value, moment, index) for index, (moment, value) in enumerate(moments)]
    return [point for point in points if reading.is_number(point[1])]


def _curves(lines: Iterable[dict]) -> dict[str, list[tuple[int, float | None]]]:
    curves: dict[str, list] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step":
                curves.setdefault(key, []).append((line["step"], value))
    return curves
