"""Read a running or killed job from its folder under `.state`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from mobilebert.jobs import locks
from mobilebert.jobs.record import Record, read_record
from mobilebert.study.job import Graph
from mobilebert.util.errors import UserError


class State:
    """The folder under `.state` of a running or killed job."""

    def __init__(self, folder: Path, results: Path, study: str, graph: Graph):
        self.folder, self.results, self.study = folder, results, study
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.job, self.fingerprint = facts["job"], facts["fingerprint"]
        self.known = self.job in graph and graph[self.job].fingerprint == self.fingerprint
        self.started = int((folder / "run.json").stat().st_mtime * 1000)
        self.config = graph[self.job].config if self.known else {}

    @property
    def alive(self) -> bool:
        """Return whether a process holds the lock of this job."""
        return locks.is_live(self.folder)

    @property
    def record(self) -> Record | None:
        """Return the job's record; None if missing, damaged, edited or of another fingerprint."""
        stage, _, name = self.job.partition("/")
        with contextlib.suppress(UserError):
            found = read_record(self.results / self.study / stage / name / "result.json")
            if found.fingerprint == self.fingerprint and found.seal != "edited":
                return found
        return None

    @property
    def has_record(self) -> bool:
        """Return whether the job wrote its record; a refused or diverged one may keep its state."""
        return self.record is not None

    @property
    def ended(self) -> int:
        """Return the time of the last write, in milliseconds since 1970."""
        moments = [self.started / 1000]
        with contextlib.suppress(FileNotFoundError):  # a job that runs or ends may remove files meanwhile
            moments += [path.stat().st_mtime for path in self.folder.iterdir()]
        return int(max(moments) * 1000)

    def points(self, offset: int = 0) -> tuple[list[dict], int]:
        """Return the points in curves.jsonl from byte `offset` on, and the next offset.

        A damaged line is left out, an incomplete last line is left for the next call.
        """
        path = self.folder / "curves.jsonl"
        if not path.exists():
            return [], 0
        with path.open("rb") as stream:
            stream.seek(offset if offset <= path.stat().st_size else 0)  # a shorter file was written anew
            text = stream.read()
            complete = text.rfind(b"\n") + 1
            return list(_points(text[:complete])), stream.tell() - len(text) + complete


def _points(text: bytes) -> Iterator[dict]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            point = json.loads(line)
            if isinstance(point, dict) and type(point.get("step")) is int:
                yield point
