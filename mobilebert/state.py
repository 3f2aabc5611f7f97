"""The states under `results/<study>/.state`: what runs under way or killed have saved, and which of it nothing reads any more."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mobilebert import config, jobs, locks
from mobilebert.errors import UserError


@dataclass(frozen=True)
class State:
    """One run's folder. `kind`: live (a process holds its lock), resumable (the study has this job), stale (it has not), or
    unknown (there is no such study here to ask)."""

    folder: Path
    study: str
    job: str
    fingerprint: str
    kind: str

    @property
    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def age(self) -> float:
        """Seconds since the last write."""
        return time.time() - max((path.stat().st_mtime for path in self.files), default=self.folder.stat().st_mtime)

    @property
    def progress(self) -> str:
        """`step 40 of 240` of the training that saved last; nothing where none did."""
        saved = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        facts = _facts(saved[-1]) if saved else {}
        return f"step {facts['step']} of {facts.get('steps', '?')}" if "step" in facts else "no step saved"

    def __str__(self) -> str:
        size, age = f"{self.bytes / 2**20:.1f} MiB", f"{self.age / 3600:.1f} h old"
        return f"{self.study}: {self.job} {self.fingerprint[:12]}: {self.progress}, {size}, {age}, {self.kind}"


def _facts(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file: 8 bytes with the length of a JSON header, and the header."""
    try:
        with path.open("rb") as stream:
            return json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).get("__metadata__", {})
    except (OSError, ValueError, OverflowError, MemoryError):
        return {}


def states(results: Path) -> Iterator[State]:
    """Every state of every study under `results`. Raises UserError when there is no such folder."""
    if not results.is_dir():
        raise UserError(f"--results: no folder {results}")
    for folder in sorted(results.glob("*/.state")):
        name = folder.parent.name
        try:
            current = {job.id: job.fingerprint for job in jobs.build(config.load(name)).values()}
        except UserError:
            current = None
        for path in sorted(folder.glob("*/run.json")):
            try:
                facts = json.loads(path.read_text(encoding="utf-8"))
                job, fingerprint = facts["job"], facts["fingerprint"]
            except (OSError, ValueError, KeyError):  # it ends, or begins, this moment
                continue
            known = "unknown" if current is None else "resumable" if current.get(job) == fingerprint else "stale"
            yield State(path.parent, name, job, fingerprint, "live" if locks.is_live(path.parent) else known)


def list_states(results: Path) -> Iterator[str]:
    """A line a state."""
    return (str(state) for state in states(results))


def prune_states(results: Path) -> Iterator[str]:
    """Remove the stale states; a line for each one and the bytes freed. The others stay, the unknown with a line that says so."""
    freed = 0
    for state in states(results):
        if state.kind == "unknown":
            yield f"kept {state}: workflows/config has no study {state.study} to ask"
        elif state.kind == "stale":
            line, size = f"removed {state}", state.bytes
            with locks.lock(locks.lock_of(state.folder), f"{state.folder}: another process is making this result"):
                shutil.rmtree(state.folder)
            freed += size
            yield line
    yield f"{freed:,} bytes freed"
