"""Write the records as MLflow runs: a view of the results folder that can be rebuilt from it.

A parent run is one resolved configuration of a study, a child run one record. Below it are the
trials of its runs.jsonl: the settings of a search and the seeds. Runs are found by their tags, so
ingesting twice adds nothing. The store is `<results>/<study>/mlflow.db`, or the one that
MLFLOW_TRACKING_URI names, with an experiment for each study. Its files are beside the results; a
server decides for itself where they are.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from mobilebert.jobs.freshness import current_records, record_file
from mobilebert.jobs.record import Record, read_record
from mobilebert.jobs.underway import State
from mobilebert.reporting import reading
from mobilebert.reporting.experiment import Experiment, Say
from mobilebert.reporting.store import trouble, writer
from mobilebert.study.job import Graph
from mobilebert.study.schema import Study
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError
from mobilebert.util.text import cut

HEADLINE = "mobilebert"  # the row whose scores decide whether the parent run has failed
PROGRESS_S = 10.0  # seconds between two lines on one followed job


def _silent(_: str) -> None:
    pass


def ingest(
    results: Path,
    study: Study,
    graph: Graph,
    found: Mapping[str, Record],
    cells: Callable[[], Mapping[str, int]] = dict,
    edited: Collection[str] = (),
    say: Say = _silent,
) -> dict[str, int]:
    """Write the records `found` (job id -> current record) and the killed jobs into the store.

    Returns how many child runs were "added", "completed" (followed or killed before) or "there".
    cells: returns the counts of the tables' cells (`tables.counts`), metrics of the parent run.
    edited: ids of records edited by hand, which are left out. say: takes a line for each thing left
    out. Raises UserError if the store fails.
    """
    counts = {"added": 0, "completed": 0, "there": 0}
    for key in edited:
        say(f"{key}: edited after it was written; left out of MLflow")
    with writer(results / study.name), trouble(results / study.name):
        store = Experiment(results, study, graph, say)
        for record in [*found.values(), *_refused(results, study.name, graph, found)]:
            if record.stage not in VIEWS:
                counts[store.add(record, found)] += 1
        killed = _killed(results, study.name, graph, found)
        for state in killed:
            counts[store.add_killed(state)] += 1
        store.end_the_abandoned()
        store.close(_status(found, killed), found, cells)
    return counts


def _status(found: Mapping[str, Record], killed: Collection[State]) -> str:
    return "FAILED" if has_failed(found) else "KILLED" if killed else "FINISHED"


def has_failed(found: Mapping[str, Record]) -> bool:
    """Return whether a score of HEADLINE, or every score, is of a model that did not learn.

    WNLI does not count for HEADLINE, because all models answer its majority class.
    """
    scores = [record for record in found.values() if reading.is_score(record)]
    bad = [record for record in scores if reading.status(record) != "ok"]
    headline = [record for record in bad if record.name.startswith(f"{HEADLINE}/") and not record.name.endswith("/wnli")]
    return bool(headline or (scores and len(bad) == len(scores)))


def follow(
    results: Path,
    study: Study,
    graph: Graph,
    stop: threading.Event | None = None,
    interval: float = 2.0,
    patience: float = 30.0,
    say: Say = _silent,
) -> int:
    """Stream the curves of running jobs into their child runs; return the number of points.

    It ends if `stop` is set, or if no job has run for `patience` seconds. If a job ends meanwhile,
    its child run is ended too. say: takes a line when a job begins, at most every PROGRESS_S
    seconds on its points, and when it ends.
    """
    stop = stop or threading.Event()
    followed: dict[str, _Followed] = {}
    with writer(results / study.name), trouble(results / study.name):
        store = Experiment(results, study, graph, say)
    points, last_seen = 0, time.monotonic()
    while True:
        with writer(results / study.name), trouble(results / study.name):
            alive = {state.job: state for state in _states(results, study.name, graph) if state.alive}
            for key, state in alive.items():
                last_seen = time.monotonic()
                if key not in followed:
                    followed[key] = _Followed(state)
                    say(f"{key}: under way")
                points += followed[key].stream(store, state, say)
            for key in [key for key in followed if key not in alive]:
                say(followed.pop(key).end(store, current_records(results, study.name, graph)))
            if stop.is_set() or time.monotonic() - last_seen >= patience:
                if not alive:  # the next `ingest` completes the jobs that still run
                    found = current_records(results, study.name, graph)
                    store.close(_status(found, _killed(results, study.name, graph, found)), found, dict)
                return points
        stop.wait(interval)


class _Followed:
    """One running job whose points are streamed."""

    def __init__(self, state: State):
        self.state, self.offset, self.points, self.said = state, 0, 0, time.monotonic()

    def stream(self, store: Experiment, state: State, say: Say) -> int:
        """Write the new points into the store; return how many."""
        self.state = state
        lines, self.offset = state.points(self.offset)
        count = store.stream(state, lines)
        self.points += count
        if count and time.monotonic() - self.said >= PROGRESS_S:
            self.said = time.monotonic()
            values = ", ".join(
                f"{key} {value:.4g}" for key, value in lines[-1].items() if reading.is_number(value) and key != "step"
            )
            say(cut(f"{state.job}: step {lines[-1]['step']}, {values}; {self.points} points", 200))
        return count

    def end(self, store: Experiment, found: Mapping[str, Record]) -> str:
        """End the child run as the job ended; return a line on it. found: the current records."""
        store.read()  # another process may have ingested its record meanwhile
        record = self.state.record
        if record is not None:
            store.add(record, found)
            outcome = " ".join(
                filter(None, (reading.status(record), f"({reading.reason(record)})" if reading.reason(record) else ""))
            )
        else:
            store.add_killed(self.state)
            outcome = "killed"
        return cut(f"{self.state.job}: {outcome}, {self.points} points streamed", 300)


# --- the results folder


def _states(results: Path, study: str, graph: Graph) -> list[State]:
    found = []
    for path in sorted((results / study / ".state").glob("*/run.json")):
        # The job begins or ends meanwhile, or its run.json is damaged.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(State(path.parent, results, study, graph))
    return [state for state in found if state.known and state.job.partition("/")[0] not in VIEWS]


def _killed(results: Path, study: str, graph: Graph, found: Mapping[str, Record]) -> list[State]:
    """Return the jobs that were killed and have no record."""
    states = _states(results, study, graph)
    return [state for state in states if state.job not in found and not state.alive and not state.has_record]


def _refused(results: Path, study: str, graph: Graph, found: Mapping[str, Record]) -> Iterable[Record]:
    """Yield the records of refused jobs, which count as stale so that the jobs are tried again."""
    for key, job in graph.items():
        path = record_file(results, study, job)
        if key not in found and path.exists():
            with contextlib.suppress(UserError):
                record = read_record(path)
                if record.status == "refused" and record.fingerprint == job.fingerprint and record.seal != "edited":
                    yield record
