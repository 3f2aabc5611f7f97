"""Find what two sides differ in, the most telling first: configuration, data, code, environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mobilebert.compare.side import Facts, Side
from mobilebert.study.stages import STAGES

Kind = Literal["records", "configuration", "data", "code", "environment"]
IDENTITY = ("configuration", "data")  # what makes an experiment
NONE = "–"  # the side has no such key


@dataclass(frozen=True)
class Difference:
    """One difference. key: with dots. base, new: the values. jobs: where they differ."""

    kind: Kind
    key: str
    base: str
    new: str
    jobs: tuple[str, ...]

    @property
    def where(self) -> str:
        """Return the jobs in words."""
        return f"{self.jobs[0]} and {len(self.jobs) - 1} more" if self.jobs[1:] else self.jobs[0]


def differences(base: Side, new: Side) -> list[Difference]:
    """Return every difference of two sides but their metrics, grouped over the jobs that share it.

    Keys of early stages come first; of one stage those that more jobs share.
    """
    shared = [key for key in base.jobs if key in new.jobs]
    found = [*_grouped("configuration", base, new, shared), *_grouped("data", base, new, shared)]
    found += _records(base, new)
    return [*found, *_grouped("code", base, new, shared), *_grouped("environment", base, new, shared)]


def comparable(key: str, base: Side, new: Side) -> str | None:
    """Return None if both sides made a job by the same experiment; else what differs first, in the
    job or in a job that it reads."""
    waiting, seen = [key], set()
    while waiting:
        job = waiting.pop()
        if job in seen:
            continue
        seen.add(job)
        if problem := own_change(job, base, new):
            return problem
        waiting += [item for facts in (base.jobs.get(job), new.jobs.get(job)) if facts for item in facts.inputs]
    return None


def own_change(job: str, base: Side, new: Side) -> str | None:
    """Return what differs first in the configuration or the data of a job that both sides have.

    Facts that the base has and the new lacks differ too: they may hide another experiment.
    """
    mine, theirs = base.jobs.get(job), new.jobs.get(job)
    if mine is None or theirs is None:
        return None
    for kind in IDENTITY:
        before, now = _mapping(kind, mine), _mapping(kind, theirs)
        if before and not now:
            return f"{kind} of {job}: not recorded"
        for name, _, _ in _changes(before, now):
            return f"{kind} of {job}: {name}"
    return None


def _grouped(kind: Kind, base: Side, new: Side, jobs: list[str]) -> list[Difference]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for job in jobs:
        for change in _changes(_mapping(kind, base.jobs[job]), _mapping(kind, new.jobs[job])):
            groups.setdefault(change, []).append(job)
    found = []
    for (key, before, now), where in groups.items():
        name = f"{_stage(where[0])}.{key}" if kind in IDENTITY else key
        found.append(Difference(kind, name, before, now, tuple(where)))
    order = list(STAGES)
    return sorted(found, key=lambda item: (order.index(_stage(item.jobs[0])), -len(item.jobs)) if kind in IDENTITY else (0, 0))


def _mapping(kind: Kind, facts: Facts) -> Mapping[str, str]:
    return {"configuration": facts.config, "data": facts.data, "code": facts.modules, "environment": facts.environment}[kind]


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (key, old, new) of every key that differs. A record without any facts of a kind was
    written before records had them, or comes from a store that lacks them: nothing is known."""
    if before and now:
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                yield key, before.get(key, NONE), now.get(key, NONE)


def _records(base: Side, new: Side) -> list[Difference]:
    gone = tuple(key for key in base.jobs if key not in new.jobs and key not in new.edited)
    more = tuple(key for key in new.jobs if key not in base.jobs and key not in base.edited)
    found = [Difference("records", "edited by hand", *_either(side is base), side.edited) for side in (base, new) if side.edited]
    found += [Difference("records", "only in the base", str(len(gone)), NONE, gone)] if gone else []
    return found + ([Difference("records", "only in the new", NONE, str(len(more)), more)] if more else [])


def _either(is_base: bool) -> tuple[str, str]:
    return ("edited", NONE) if is_base else (NONE, "edited")


def _stage(job: str) -> str:
    return job.partition("/")[0]
