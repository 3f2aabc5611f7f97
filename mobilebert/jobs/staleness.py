"""Explain why a record is stale: which key, input or module changed. Records are only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mobilebert.jobs.demand import Demand, Forced
from mobilebert.jobs.freshness import freshness_of, record_file
from mobilebert.jobs.record import Record, read_record
from mobilebert.study.code_hash import module_hashes
from mobilebert.study.job import Graph, Job
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError
from mobilebert.util.text import cut

LINE = 200  # characters of a line
LINES = 20  # the most stale records listed when a workflow starts
VALUE = 40  # characters of a value in a line
_ABSENT = object()


def why(record: Record | None, job: Job, graph: Graph) -> list[str]:
    """Return the reasons why a record is not current; none if it is.

    Examples: "config.learning_rate: 0.001, was 0.002", "input data changed", "module
    mobilebert.training.loop changed", "missing", "edited".
    """
    if record is None:
        return ["missing"]
    if record.seal == "edited":
        return ["edited"]
    if record.id != job.id:
        return [f"a record of {record.id}"]
    if record.fingerprint == job.fingerprint:
        return [f"refused before: {record.reason}"] if record.status == "refused" else []
    found = [
        *_config(record.config, job.config, "config"),
        *_inputs(record.inputs, {key: graph[key].fingerprint for key in job.inputs}),
    ]
    if record.modules:
        found += _modules(record.modules, module_hashes(job.stage))
    return found or ["the code of the stage changed" if record.modules else "the code changed (the record names no modules)"]


def _config(before: Mapping, now: Mapping, prefix: str) -> Iterator[str]:
    for key in [*now, *(key for key in before if key not in now)]:
        old, new, name = before.get(key, _ABSENT), now.get(key, _ABSENT), f"{prefix}.{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _config(old, new, name)
        elif old is _ABSENT:
            yield f"{name}: {_short(new)}, was not there"
        elif new is _ABSENT:
            yield f"{name}: no longer there, was {_short(old)}"
        elif old != new:
            yield f"{name}: {_short(new)}, was {_short(old)}"


def _short(value) -> str:
    return cut(str(value), VALUE)


def _inputs(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    yield from (f"input {key} changed" for key in now if key in before and before[key] != now[key])
    yield from (f"input {key} is new" for key in now if key not in before)
    yield from (f"input {key} is no longer read" for key in before if key not in now)


def _modules(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    yield from (f"module {name} changed" for name in now if name in before and before[name] != now[name])
    yield from (f"module {name} is new" for name in now if name not in before)
    yield from (f"module {name} is no longer used" for name in before if name not in now)


def lines(results: Path, study: str, graph: Graph) -> list[str]:
    """Return a line for each stale record, in order; after LINES of them one counts the others."""
    found = []
    for key, job in graph.items():
        if freshness_of(results, study, job, graph) == "stale":
            found.append(cut(f"{key}: {'; '.join(_reasons(record_file(results, study, job), job, graph))}", LINE))
    left = len(found) - LINES
    return found[:LINES] + ([f"and {left} more"] if left > 0 else [])


def because(demand: Demand, key: str, forced: Forced) -> str:
    """Return in one line why the workflow runs a job; "" if it is up to date."""
    if demand.is_forced(key, forced):
        return "the command line forces it"
    if demand.freshness[key] == "missing":
        return "it has no record yet"
    if demand.freshness[key] == "stale":
        return "; ".join(_reasons(demand.record(key), demand.graph[key], demand.graph))
    if lost := [path.name for path in demand.outputs(key) if not path.exists()]:
        return f"deleted: {', '.join(lost)}"
    if demand.is_up_to_date(key, forced):
        return ""
    if key not in VIEWS:
        return f"refused before: {demand.current[key].reason}"
    if shown := [one for one in demand.graph[key].inputs if not demand.is_settled(one, forced)]:
        return f"it shows {shown[0]}, which runs too{f', and {len(shown) - 1} more' if shown[1:] else ''}"
    return "a view is written again if the command line forces anything"


def explain(results: Path, study: str, job: Job, graph: Graph) -> list[str]:
    """Return the freshness of a job's record in a line, then every reason in a line of its own."""
    path, freshness = record_file(results, study, job), freshness_of(results, study, job, graph)
    if freshness == "missing":
        return [f"{job.id}: missing; {path} does not exist"]
    reasons = _reasons(path, job, graph) if freshness == "stale" else []
    return [f"{job.id}: {freshness}", *(f"  {reason}" for reason in reasons)]


def _reasons(path: Path, job: Job, graph: Graph) -> list[str]:
    try:
        return why(read_record(path), job, graph)
    except UserError as error:
        return [str(error)]
