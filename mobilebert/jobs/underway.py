"""A run that is under way or was killed, as its folder under `.state` tells."""

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
    """A run's folder under `.state`: of one under way, or of one that was killed."""

    def __init__(self, folder: Path, results: Path, study: str, graph: Graph):
        self.folder, self.results, self.study = folder, results, study
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.job, self.fingerprint = facts["job"], facts["fingerprint"]
        self.known = self.job in graph and graph[self.job].fingerprint == self.fingerprint
        self.started = int((folder / "run.json").stat().st_mtime * 1000)
        self.config = graph[self.job].config if self.known else {}

    @property
    def alive(self) -> bool:
        """Whether a process holds the lock of this run."""
        return locks.is_live(self.folder)

    @property
    def record(self) -> Record | None:
        """Return the record that the run has left; None if there is none, or one of another run or edited by hand."""
        stage, _, name = self.job.partition("/")
        with contextlib.suppress(UserError):
            found = read_record(self.results / self.study / stage / name / "result.json")
            if found.fingerprint == self.fingerprint and found.seal != "edited":
                return found
        return None

    @property
    def has_record(self) -> bool:
        """Whether the run ended after all: a refused one leaves its state for the next attempt."""
        return self.record is not None

    @property
    def ended(self) -> int:
        """Return when its last file was written, in milliseconds since 1970."""
        moments = [self.started / 1000]
        with contextlib.suppress(FileNotFoundError):  # it goes on, or ends, this moment
            moments += [path.stat().st_mtime for path in self.folder.iterdir()]
        return int(max(moments) * 1000)

    def points(self, offset: int = 0) -> tuple[list[dict], int]:
        """Complete lines of curves.jsonl from `offset` on, and the offset after them. A damaged line is left out."""
        path = self.folder / "curves.jsonl"
        if not path.exists():
            return [], 0
        with path.open("rb") as stream:
            stream.seek(offset if offset <= path.stat().st_size else 0)  # a shorter file is another run's
            text = stream.read()
            complete = text.rfind(b"\n") + 1
            return list(_points(text[:complete])), stream.tell() - len(text) + complete


def _points(text: bytes) -> Iterator[dict]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            point = json.loads(line)
            if isinstance(point, dict) and type(point.get("step")) is int:
                yield point
