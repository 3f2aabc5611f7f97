"""Read a job's trials from its runs.jsonl: a line for each trial of the search and each seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mobilebert.reporting import reading


@dataclass(frozen=True)
class Trial:
    """One trial as it is written to MLflow. started: milliseconds since 1970."""

    name: str
    params: dict
    metrics: dict[str, float]
    tags: dict[str, str]
    started: int
    seconds: float


def trials(path: Path) -> tuple[list[Trial], int]:
    """Return the trials in the file and the number of damaged lines; no trials if it is missing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return [], 0
    found, damaged = [], 0
    for line in filter(None, lines):
        try:
            found.append(_trial(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    return found, damaged


def _trial(line: dict) -> Trial:
    if not isinstance(line["run"], str) or not line["run"]:
        raise TypeError("the key run is not a name")
    return Trial(
        name=line["run"],
        params={**line["setting"], "seed": line["seed"], "part": line["part"]},
        metrics={key: value for key, value in line["metrics"].items() if reading.is_number(value)},
        tags={key: str(line[key] or "") for key in ("role", "status", "reason")},
        started=reading.started(line["started"]),
        seconds=reading.duration(line["seconds"]),
    )
