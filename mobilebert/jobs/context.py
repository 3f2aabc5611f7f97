"""Give a running stage its folders and inputs, and collect the content of its record."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from mobilebert.jobs.freshness import record_file, record_folder
from mobilebert.jobs.record import RECORD_SCHEMA, Attention, Quantization, Record, read_record, sealed
from mobilebert.jobs.usage import Usage
from mobilebert.study.code_hash import module_hashes
from mobilebert.study.job import Config, Graph, Job
from mobilebert.study.pretraining_seeds import row_of
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256, json_safe, write_atomically
from mobilebert.util.machine import cores

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "onnxruntime", "snakemake", "mlflow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages of PACKAGES."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def commit() -> str | None:
    """Return the git commit of this checkout, with "-dirty" if tracked files differ from it.

    Return None if the package does not lie in a checkout of its own, or git cannot tell.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip() or None
    return None


def machine_facts() -> dict:
    """Return cores, architecture, load of the last minute, threads that the command was given and,
    on Linux, the processor's name."""
    facts = {"cores": cores(), "arch": platform.machine(), "load": os.getloadavg()[0]}
    if threads := os.environ.get("OMP_NUM_THREADS"):
        facts["threads"] = threads
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                facts["cpu"] = line.split(":", 1)[1].strip()
                break
    return facts


class JobContext:
    """Everything that the stage of one job works with: its folders, its inputs and its record."""

    def __init__(self, job: Job, study: str, results: Path, graph: Graph):
        self.job, self.study, self.results, self.graph = job, study, results, graph
        self.folder = record_folder(results, study, job)
        self.state = results / study / ".state" / f"{job.id.replace('/', '-')}-{job.fingerprint[:16]}"
        self.labels: list[str] = []
        self.metrics: dict[str, float] = {}
        self.samples: dict[str, list] = {}
        self.curves: dict[str, list] = {}
        self.usage: Usage = {}
        self.details: dict = {}
        self.artefacts: list[str] = []
        self.weights_dtype: dict[str, str] = {}
        self.quantization: Quantization | None = None
        self.quantizations: dict[str, Quantization] = {}
        self.attention: Attention | None = None
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def settings(self, kind: type[Config]) -> Config:
        """Return the job's typed configuration. See `Job.settings`."""
        return self.job.settings(kind)

    def begin(self) -> None:
        """Create the folder of the saved state. Its run.json names the study file, because
        two files of one name share `.state`."""
        self.state.mkdir(parents=True, exist_ok=True)
        study = getattr(self.graph, "study_file", None)
        facts = {"job": self.job.id, "fingerprint": self.job.fingerprint, "pid": os.getpid(), "study": study}
        write_atomically(self.state / "run.json", json.dumps(facts).encode())

    def log(self, step: int, **values: float) -> None:
        """Add a point to every named curve, and write it to disk at once for `track --live`."""
        for key, value in values.items():
            self.curves.setdefault(key, []).append((step, value))
        with (self.state / "curves.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **json_safe(values)}) + "\n")

    def resume(self, name: str, start: int) -> None:
        """Read the curves that an earlier process saved, without points from step `start` on of the
        training `name`; if `name` is empty, keep every point."""
        path, kept = self.state / "curves.jsonl", []
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                with contextlib.suppress(json.JSONDecodeError):  # a line cut short by the kill
                    point = json.loads(line)
                    if name and point["step"] >= start:  # a line may also hold points of trainings that have ended
                        point = {key: value for key, value in point.items() if not key.startswith(f"{name}_")}
                    if len(point) > 1:
                        kept.append(point)
        write_atomically(path, "".join(json.dumps(point) + "\n" for point in kept).encode())
        self.curves = {}
        for point in kept:
            for key, value in point.items():
                if key != "step":
                    self.curves.setdefault(key, []).append((point["step"], value))

    def record_of(self, key: str) -> Record:
        """Return an input's record. Raises UserError if it is missing, stale or refused."""
        job = self.graph[key]
        path = record_file(self.results, self.study, job)
        if not path.exists():
            raise UserError(f"{path}: missing; make it with: python -m mobilebert {job.stage} {job.name} --study {self.study}")
        record = read_record(path)
        if record.seal == "edited":
            raise UserError(f"{path}: edited after it was written; delete it and run its stage again")
        if record.fingerprint != job.fingerprint:
            raise UserError(
                f"{path}: written with another configuration or other code (fingerprint {record.fingerprint[:12]}, "
                f"wanted {job.fingerprint[:12]}); run it again with: python -m mobilebert {job.stage} {job.name}"
            )
        if record.status == "refused":
            raise UserError(f"{path}: refused: {record.reason}")
        return record

    def artefact_of(self, key: str, name: str) -> Path:
        """Return the path of an input's artefact. Raises UserError if missing or changed."""
        record, where = self.record_of(key), record_folder(self.results, self.study, self.graph[key])
        path, known = where / name, record.artefacts.get(name)
        if known is None or not path.is_file():
            raise UserError(f"{path}: missing, though {key} has a record; delete {where / 'result.json'} and run it again")
        if file_sha256(path) != known["sha256"]:
            raise UserError(f"{path}: sha256 is not {known['sha256'][:12]}... as recorded; delete result.json and run it again")
        return path

    def label(self, labels: Iterable[str], *inputs: str) -> None:
        """Add labels and those of the inputs: a label of a teacher is also true of its student."""
        for text in [*labels, *(text for key in inputs for text in self.record_of(key).labels)]:
            if text not in self.labels:
                self.labels.append(text)

    def _pretraining_seed(self, job: Job) -> int | None:
        """Return the seed with which a job's model was pre-trained; None if it was not.

        A fine-tuning or quantization has the seed of the job whose weights it reads.
        """
        if job.row is None or "seed" in job.config:
            return job.config["seed"] if job.row else None
        own = (self.graph[key] for key in job.inputs if self.graph[key].row == job.row)
        return next((seed for other in own if (seed := self._pretraining_seed(other)) is not None), None)

    def write(self, status: str = "ok", reason: str | None = None) -> None:
        """Write the record, result.json, with the hashes of the artefacts."""
        files = {
            name: {"sha256": file_sha256(self.folder / name), "bytes": (self.folder / name).stat().st_size}
            for name in self.artefacts
        }
        record = {
            "schema": RECORD_SCHEMA,
            "study": self.study,
            "stage": self.job.stage,
            "name": self.job.name,
            "status": status,
            "reason": reason,
            "fingerprint": self.job.fingerprint,
            "config": self.job.config,
            "inputs": {key: self.graph[key].fingerprint for key in self.job.inputs},
            "labels": self.labels,
            "metrics": self.metrics,
            "samples": self.samples,
            "curves": self.curves,
            "details": self.details,
            "artefacts": files,
            "versions": versions(),
            "machine": machine_facts(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            "modules": module_hashes(self.job.stage),
            "weights_dtype": self.weights_dtype,
            "predictions": [name for name in self.artefacts if Path(name).name.startswith("predictions.")],
            "quantization": self.quantization and self.quantization.model_dump(mode="json"),
            "quantizations": {key: value.model_dump(mode="json") for key, value in self.quantizations.items()},
            "row": self.job.row and row_of(self.job.row),
            "pretraining_seed": self._pretraining_seed(self.job),
            "usage": self.usage,
            "attention": self.attention and self.attention.model_dump(mode="json"),
            "commit": commit(),
        }
        text = json.dumps(sealed(json_safe(record)), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "result.json", text.encode())
