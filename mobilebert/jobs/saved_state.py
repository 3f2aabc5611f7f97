"""List the saved states of running and killed jobs, and remove those that no job reads any more."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mobilebert.jobs import locks
from mobilebert.jobs.record import read_record
from mobilebert.study.graph import build_graph
from mobilebert.study.job import Graph
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError


@dataclass(frozen=True)
class State:
    """One folder `results/<study>/.state/<job>`, with its kind.

    live: a process holds its lock. resumable: the study has this job with this fingerprint.
    diverged: it has, and the job's record says that it diverged. stale: it has not.
    unknown: the study's file cannot be read, or is not known.
    """

    folder: Path
    study: str
    job: str
    fingerprint: str
    kind: str

    @property
    def facts(self) -> list[os.stat_result]:
        """Return the stat of every file; a running job may remove one meanwhile."""
        found = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                found += [path.stat()] if path.is_file() else []
        return found

    @property
    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(facts.st_size for facts in self.facts)

    @property
    def age(self) -> float:
        """Return the seconds since the last write; 0 if there is no file."""
        now = time.time()
        return now - max((facts.st_mtime for facts in self.facts), default=now)

    @property
    def progress(self) -> str:
        """Return "3 runs ended, step 40 of 240": ended trials, and the training that saved last."""
        runs, saved = sum(1 for _ in self.folder.glob("runs/*.json")), []
        for path in self.folder.rglob("*.safetensors"):  # each trial of a search has a folder
            with contextlib.suppress(FileNotFoundError):
                saved.append((path.stat().st_mtime, path))
        found = (facts for facts in (_facts(path) for _, path in sorted(saved, reverse=True)) if "step" in facts)
        facts = next(found, None)
        parts = [f"{runs} run{'s' * (runs > 1)} ended"] if runs else []
        if facts or not runs:
            parts.append(f"step {facts['step']} of {facts.get('steps', '?')}" if facts else "no step saved")
        return ", ".join(parts)

    def __str__(self) -> str:
        size, age = f"{self.bytes / 2**20:.1f} MiB", f"{self.age / 3600:.1f} h old"
        return f"{self.study}: {self.job} {self.fingerprint[:12]}: {self.progress}, {size}, {age}, {self.kind}"


def _facts(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file (8 bytes of length, JSON header); {} if damaged."""
    try:
        with path.open("rb") as stream:
            return json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).get("__metadata__", {})
    except (OSError, ValueError, OverflowError, MemoryError):
        return {}


def states(results: Path) -> Iterator[State]:
    """Yield every saved state of every study. Raises UserError if there is no folder `results`."""
    if not results.is_dir():
        raise UserError(f"--results: no folder {results}")
    studies: dict[str | None, Graph | None] = {None: None}
    for folder in sorted(path for path in results.glob("*/.state/*") if path.is_dir()):
        study = folder.parents[1].name
        try:
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            job, fingerprint, file = facts["job"], facts["fingerprint"], facts.get("study")
        except (OSError, ValueError, KeyError, TypeError):  # killed before run.json was written: only the folder's name is known
            job, _, fingerprint = folder.name.rpartition("-")
            file = None
        if file is not None and file not in studies:
            studies[file] = _graph(file)
        kind = "live" if locks.is_live(folder) else _kind(results / study, job, fingerprint, studies[file])
        yield State(folder, study, job, fingerprint, kind)


def _graph(file: str) -> Graph | None:
    try:
        return build_graph(load_study(file))
    except UserError:
        return None


def _kind(study: Path, job: str, fingerprint: str, graph: Graph | None) -> str:
    if graph is None:
        return "unknown"
    if job not in graph or graph[job].fingerprint != fingerprint:
        return "stale"
    with contextlib.suppress(UserError):
        record = read_record(study / job / "result.json")
        if record.status == "diverged" and record.fingerprint == fingerprint:
            return "diverged"
    return "resumable"


def list_states(results: Path) -> Iterator[str]:
    """Return one line for each saved state."""
    return (str(state) for state in states(results))


def prune_states(results: Path) -> Iterator[str]:
    """Remove the stale and diverged states, which no job reads; yield a line for each and the bytes
    freed. Keep the others. Report those whose study cannot be read, and those locked meanwhile."""
    freed = 0
    for state in states(results):
        if state.kind == "unknown":
            yield f"kept {state}: the study that it belongs to cannot be read"
        elif state.kind in ("stale", "diverged"):
            line, size = str(state), state.bytes
            try:
                with locks.lock(locks.lock_of(state.folder), "a process makes it now"):
                    shutil.rmtree(state.folder)
            except (UserError, OSError) as error:
                yield f"kept {line}: {error}"
                continue
            freed += size
            yield f"removed {line}"
    yield f"{freed:,} bytes freed"
