"""Read a file of pytest-benchmark that `make bench` wrote, as a side of a comparison.

Times of two machines, or of two hours, cannot be compared. So the only values are ratios of peers
that ran in the same rounds: the peer's time by ours, one a round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mobilebert.compare.side import Facts, Side
from mobilebert.reporting.experiment import flatten
from mobilebert.study.load import first_problem
from mobilebert.util.errors import UserError, shown

SPEED = "speed"  # ends the names of all metrics: a higher one is better


class _Extra(BaseModel):
    """Hold what our benchmarks add to a result. samples: version -> seconds of each round."""

    samples: dict[str, list[float]] = {}
    peers: list[tuple[str, str]] = []


class _Benchmark(BaseModel):
    fullname: str
    extra_info: _Extra = _Extra()


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    machine_info: dict[str, Any]
    commit_info: dict[str, Any] = {}
    benchmarks: list[_Benchmark]


def is_benchmarks(path: Path) -> bool:
    """Return whether a file is one of pytest-benchmark's."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"benchmarks", "machine_info"} <= content.keys()


def read_benchmarks(path: Path) -> Side:
    """Return the ratios of a file of pytest-benchmark. Raises UserError if it holds none."""
    try:
        found = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: not a file of pytest-benchmark: {first_problem(error, _File)}") from None
    environment = _environment(found)
    jobs = {}
    for one in found.benchmarks:
        file, _, test = one.fullname.partition("::")
        name = f"{file.rpartition('/')[2]}::{test}"
        if name in jobs:
            raise UserError(f"{path}: two benchmarks are {shown(name)}")
        if ratios := _ratios(one.extra_info):
            jobs[name] = Facts(
                config={}, environment=environment, status=("ok",), metrics=dict.fromkeys(ratios, (None,)), samples=ratios
            )
    if not jobs:
        raise UserError(f"{path}: holds no times of peers; make one on an idle machine: make bench")
    return Side(str(path), ("",), jobs)


def _ratios(extra: _Extra) -> dict[str, tuple[float, ...]]:
    """Return metric -> the ratio of each round that both versions ended."""
    found = {}
    for peer, ours in extra.peers:
        rounds = zip(extra.samples.get(peer, []), extra.samples.get(ours, []), strict=False)
        if ratios := tuple(theirs / mine for theirs, mine in rounds if mine > 0 and theirs > 0):
            found[f"{peer} / {ours}:{SPEED}"] = ratios
    return found


def _environment(found: _File) -> dict[str, str]:
    cpu = found.machine_info.get("cpu")
    known = {"cpu": cpu.get("brand_raw") if isinstance(cpu, dict) else None, "commit": found.commit_info.get("id")}
    known["python"] = found.machine_info.get("python_version")
    return flatten({key: value for key, value in known.items() if value is not None})
