"""Define a side of a comparison: the runs of one experiment, which differ in their seeds alone.

An experiment is its configuration and its data. The code and the machine may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from pydantic import BaseModel, ConfigDict

from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.reporting.run_params import flatten

LARGEST = 1e140  # a value above has no variance that a float holds; it counts as none
SEEDED = ("pretrain", "transfer", "distill")  # stages whose key `seed` is the study's


class Facts(BaseModel):
    """All that the runs of a side know of one job.

    config: dotted key -> value as text, without seeds.
    data: hash of each file, and the number of rows.
    modules: module of this package -> start of its syntax hash.
    environment: packages, processor, threads and, of a timing, the instruction set.
    status, metrics: a value for each run of the side; None if a run has none.
    samples: the values of each seed, if the side is one run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, str]
    inputs: tuple[str, ...] = ()
    data: dict[str, str] = {}
    modules: dict[str, str] = {}
    environment: dict[str, str] = {}
    status: tuple[str, ...]
    metrics: dict[str, tuple[float | None, ...]]
    samples: dict[str, tuple[float, ...]] = {}

    def values(self, metric: str) -> tuple[float, ...]:
        """Return a metric's finite values: one a run, or one a seed if the side is one run."""
        found = self.samples.get(metric) or self.metrics.get(metric, ())
        return tuple(value for value in found if is_usable(value))


@dataclass(frozen=True)
class Run:
    """One execution of a study: its records by job id, and the ids of those edited by hand."""

    name: str
    records: Mapping[str, Record]
    edited: tuple[str, ...] = ()

    @property
    def seeds(self) -> str:
        """Return the seeds in words: of pre-training, then of fine-tuning."""
        trained = [record.config.get("seed") for record in self.records.values() if record.stage in SEEDED]
        tuned = sorted({seed for record in self.records.values() if record.stage == "finetune" for seed in reading.seeds(record)})
        first = min((seed for seed in trained if isinstance(seed, int)), default=None)  # a row adds its number to the study's
        return f"{'-' if first is None else first}; {','.join(tuned) or '-'}"


@dataclass(frozen=True)
class Side:
    """The runs of one experiment. seeds: those of each run. jobs: job id -> facts.

    edited: ids of the records that were edited by hand. unsealed: ids of those without a checksum,
    which may have been. study: the name that the records have; "" for a baseline.
    """

    name: str
    seeds: tuple[str, ...]
    jobs: Mapping[str, Facts]
    edited: tuple[str, ...] = ()
    unsealed: tuple[str, ...] = ()
    study: str = ""


def side(name: str, runs: Sequence[Run]) -> Side:
    """Return the side of some runs of one experiment."""
    jobs = dict.fromkeys(key for run in runs for key in run.records)
    edited = tuple(dict.fromkeys(key for run in runs for key in run.edited))
    unsealed = tuple(key for key in jobs if any(key in run.records and run.records[key].seal == "unsealed" for run in runs))
    study = next((record.study for run in runs for record in run.records.values()), "")
    return Side(name, tuple(run.seeds for run in runs), {key: _facts(key, runs) for key in jobs}, edited, unsealed, study)


def sides(runs: Iterable[Run]) -> list[Side]:
    """Return the runs as sides: runs of one configuration and data are seeds of one side."""
    groups: list[tuple[dict[str, tuple], list[Run]]] = []
    for run in runs:
        mine = {key: (experiment_config(record), data_facts(record)) for key, record in run.records.items()}
        for known, members in groups:
            if all(known[key] == value for key, value in mine.items() if key in known):
                known.update(mine)
                members.append(run)
                break
        else:
            groups.append((mine, [run]))
    return [side(_joined(run.name for run in members), members) for _, members in groups]


def _joined(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _facts(key: str, runs: Sequence[Run]) -> Facts:
    found = [run.records.get(key) for run in runs]
    records = [record for record in found if record is not None]
    names = dict.fromkeys(name for record in records for name in record.metrics)
    alone = records[0] if len(runs) == 1 else None
    return Facts(
        config=experiment_config(records[0]),
        inputs=tuple(records[0].inputs),
        data=data_facts(records[0]),
        modules=_merged(record.modules for record in records),
        environment=_merged(map(_environment, records)),
        status=tuple("missing" if record is None else reading.status(record) for record in found),
        metrics={name: tuple(_metric(record, name) for record in found) for name in names},
        samples={name: values for name in names if len(values := _samples(alone, name)) > 1},
    )


def _metric(record: Record | None, name: str) -> float | None:
    """Return a metric of a record; None without one, or if the record's values do not count."""
    if record is None or record.status != "ok":
        return None
    value = reading.number(record.metrics.get(name))
    return value if is_usable(value) else None


def _samples(record: Record | None, name: str) -> tuple[float, ...]:
    if record is None or record.status != "ok":
        return ()
    return tuple(filter(is_usable, map(reading.number, record.samples.get(name, []))))


def is_usable(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a number of at most LARGEST."""
    return value is not None and abs(value) <= LARGEST  # NaN is not


def experiment_config(record: Record) -> dict[str, str]:
    """Return a record's configuration as texts with dotted keys; seeds only by their number."""
    config = dict(record.config)
    if record.stage in SEEDED:
        config.pop("seed", None)
    if isinstance(config.get("seeds"), list):
        config["seeds"] = f"{len(config['seeds'])} of them"
    return flatten(config)


def data_facts(record: Record) -> dict[str, str]:
    """Return hashes of the data that a record's job read, and its numbers of rows."""
    kept = {key: record.details[key] for key in ("files", "vocab", "rows") if key in record.details}
    return flatten(kept)


def _environment(record: Record) -> dict[str, str]:
    machine = {key: value for key, value in record.machine.items() if key != "load"}
    timed = {"processor": record.details["processor"]} if "processor" in record.details else {}
    return flatten(record.versions | machine | timed)


def _merged(each: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return one mapping; a key of which the runs have several values has them all."""
    found: dict[str, dict[str, None]] = {}
    for one in each:
        for key, value in one.items():
            found.setdefault(key, {})[value] = None
    return {key: " | ".join(values) for key, values in found.items()}
