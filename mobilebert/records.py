"""`result.json`: the truth about one run of one stage. Written once, at the end, atomically; a schema of its own.

results/<study>/<stage>/<name>/result.json    and the artefacts beside it
results/<study>/.state/<stage>-<name>-<fingerprint>/   checkpoints and curves of a run under way, never an output
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobilebert.config import first_problem
from mobilebert.errors import UserError
from mobilebert.jobs import Graph, Job, digest, module_hashes
from mobilebert.locks import lock, lock_of
from mobilebert.machine import cores

SCHEMA = 1  # of result.json: raised when a key changes its meaning, never when one is added
VIEWS = ("report", "track", "check")  # of whatever records there are
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "onnxruntime", "snakemake", "mlflow")


class Quantization(BaseModel):
    """How an int8 file was made, and on which processor it was scored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: str  # dynamic, static, weight-only, quantization-aware
    engine: str  # the program that made the file and scored it, with its version
    weight_range: tuple[int, int]  # least and greatest integer that a weight of a matrix product takes
    activation_type: str  # uint8, int8, float32
    saturates: bool  # whether 16-bit sums of two products can overflow on a processor without VNNI
    scored_on: dict[str, str] = {}  # cpu (model name), isa (avx2, avx512_vnni, amx_int8, ...)
    bytes_before: int
    bytes_after: int
    int8_flops_share: float | None = None  # of the matrix products' FLOPs; None: not counted


class Record(BaseModel):
    """One result.json. Metrics are fractions (accuracy 0.91), nats, milliseconds or counts, as their names say."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    study: str
    stage: str
    name: str
    status: Literal["ok", "diverged", "refused", "void"]
    reason: str | None = None
    fingerprint: str
    config: dict
    inputs: dict[str, str]  # job id -> fingerprint
    labels: tuple[str, ...] = ()  # scaled, subset, ... and why
    metrics: dict[str, float | None] = {}
    samples: dict[str, list] = {}  # raw values behind a metric, one a seed or a round
    curves: dict[str, list[tuple[int, float | None]]] = {}
    details: dict = {}  # counts, shares of the predicted classes, hashes of the data read
    artefacts: dict[str, dict] = {}  # file -> {sha256, bytes}
    versions: dict[str, str] = {}
    machine: dict = {}
    started: str = ""
    seconds: float = 0.0
    modules: dict[str, str] = {}  # module of this package that the stage uses -> start of its syntax hash
    weights_dtype: dict[str, str] = {}  # where weights were read from -> their type in the file; they are loaded as float32
    predictions: tuple[str, ...] = ()  # the artefacts that hold a prediction for every scored row
    quantization: Quantization | None = None
    row: str | None = None  # the paper's model row that this record belongs to
    pretraining_seed: int | None = None  # a row may have records of several pre-training seeds
    checksum: str | None = None  # sha256 of this record's content without this key

    _seal: str = "unsealed"

    @property
    def seal(self) -> Literal["sealed", "unsealed", "edited"]:
        """Return whether the file still has the content that its program wrote.

        `unsealed`: written before records had a checksum. `edited`: the content is not that of the checksum.
        """
        return self._seal

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.name}" if self.name else self.stage


class Diverged(Exception):
    """Training met a loss that is not finite."""


def folder(results: Path, study: str, job: Job) -> Path:
    return results / study / job.stage / job.name if job.name else results / study / job.stage


def file(results: Path, study: str, job: Job) -> Path:
    return folder(results, study, job) / "result.json"


def read(path: Path) -> Record:
    """Return the record in a file. Raises UserError, one line, if the file is not a record."""
    try:
        content = path.read_bytes()
        record = Record.model_validate_json(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a record of schema {SCHEMA}: {first_problem(error, Record)}") from None
    if record.checksum is not None:
        record._seal = "edited"
        with contextlib.suppress(ValueError):  # NaN, which no program of ours writes
            record._seal = "sealed" if record.checksum == checksum(json.loads(content)) else "edited"
    return record


def sealed(content: dict) -> dict:
    """Return a record's content with its checksum."""
    return content | {"checksum": checksum(content)}


def checksum(content: dict) -> str:
    """Return the sha256 of a record's content, the key `checksum` left out; spaces and the order of keys do not count."""
    return digest({key: value for key, value in content.items() if key != "checksum"})


def state_of(results: Path, study: str, job: Job, graph: Graph) -> Literal["missing", "stale", "current"]:
    """Return whether the record on disk is this job's: its fingerprint decides, not its age.

    A refused record is made again, unless the input that refused it still diverged. A record edited by hand is stale.
    """
    path = file(results, study, job)
    if not path.exists():
        return "missing"
    try:
        record = read(path)
    except UserError:
        return "stale"
    if record.fingerprint != job.fingerprint or record.id != job.id or record.seal == "edited":
        return "stale"
    return "current" if record.status != "refused" or _bad_input(results, study, job, graph) else "stale"


def _bad_input(results: Path, study: str, job: Job, graph: Graph) -> str | None:
    """Why a job cannot run on its inputs: one that diverged, or was itself refused for such a one."""
    for key in job.inputs:
        if state_of(results, study, graph[key], graph) == "current":
            status = read(file(results, study, graph[key])).status
            if status in ("diverged", "refused"):
                return f"input {key} is {status}"
    return None


def current(results: Path, study: str, graph: Graph) -> dict[str, Record]:
    """Every record on disk that is its job's own."""
    found = {}
    for key, job in graph.items():
        if state_of(results, study, job, graph) == "current":
            found[key] = read(file(results, study, job))
    return found


def edited(results: Path, study: str, graph: Graph) -> list[str]:
    """Return the ids of the jobs whose record was changed after it was written. A view is made again without a word."""
    found = []
    for key, job in graph.items():
        with contextlib.suppress(UserError):
            if job.stage not in VIEWS and file(results, study, job).exists() and read(file(results, study, job)).seal == "edited":
                found.append(key)
    return found


def damaged(results: Path, study: str, graph: Graph) -> dict[Path, str]:
    """Return the files of jobs' records that are no record, each with what is wrong. A view is made again without a word."""
    found = {}
    for job in graph.values():
        path = file(results, study, job)
        try:
            if job.stage not in VIEWS and path.exists():
                read(path)
        except UserError as error:
            found[path] = str(error).removeprefix(f"{path}: ")
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one; a power cut leaves one of the two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        settle(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def settle(part: Path, path: Path) -> None:
    """Give a file that is written its name. The file is on the disk before it is renamed, the folder after: no power cut
    leaves less than the old file."""
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict:
    facts = {"cores": cores(), "arch": platform.machine(), "load": os.getloadavg()[0]}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                facts["cpu"] = line.split(":", 1)[1].strip()
                break
    return facts


def json_safe(value):
    """NaN and infinity are not JSON; a record says null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        return json_safe(value.item())
    return value


class Run:
    """One run of one job, as its stage sees it: where to write, what to read, what to say in the record."""

    def __init__(self, job: Job, study: str, results: Path, graph: Graph):
        self.job, self.study, self.results, self.graph = job, study, results, graph
        self.folder = folder(results, study, job)
        self.state = results / study / ".state" / f"{job.id.replace('/', '-')}-{job.fingerprint[:16]}"
        self.labels: list[str] = []
        self.metrics: dict[str, float] = {}
        self.samples: dict[str, list] = {}
        self.curves: dict[str, list] = {}
        self.details: dict = {}
        self.artefacts: list[str] = []
        self.weights_dtype: dict[str, str] = {}
        self.quantization: Quantization | None = None
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def begin(self) -> None:
        """Make the state folder, which says whose it is: two study files of one name share the folder of all states."""
        self.state.mkdir(parents=True, exist_ok=True)
        facts = {"job": self.job.id, "fingerprint": self.job.fingerprint, "pid": os.getpid()}
        facts["study"] = getattr(self.graph, "study_file", None)
        write_atomically(self.state / "run.json", json.dumps(facts).encode())

    def log(self, step: int, **values: float) -> None:
        """A point of every named curve, at once on disk too, for whoever follows the run."""
        for key, value in values.items():
            self.curves.setdefault(key, []).append((step, value))
        with (self.state / "curves.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **json_safe(values)}) + "\n")

    def resume(self, name: str, start: int) -> None:
        """Take up the curves that an earlier process left; of training `name` the points before step `start`."""
        path, kept = self.state / "curves.jsonl", []
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                with contextlib.suppress(json.JSONDecodeError):  # a line cut short by the kill
                    point = json.loads(line)
                    if name and point["step"] >= start:  # a line may hold points of several runs, of which others have ended
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
        """The current record of an input. Raises UserError when it is missing or belongs to another configuration."""
        job = self.graph[key]
        path = file(self.results, self.study, job)
        if not path.exists():
            raise UserError(f"{path}: missing; make it with: python -m mobilebert {job.stage} {job.name} --study {self.study}")
        record = read(path)
        if record.seal == "edited":
            raise UserError(f"{path}: edited after it was written; delete it to make it again")
        if record.fingerprint != job.fingerprint:
            raise UserError(
                f"{path}: made by another configuration or other code (fingerprint {record.fingerprint[:12]}, "
                f"wanted {job.fingerprint[:12]}); make it again with: python -m mobilebert {job.stage} {job.name}"
            )
        if record.status == "refused":
            raise UserError(f"{path}: refused: {record.reason}")
        return record

    def artefact_of(self, key: str, name: str) -> Path:
        """Path of an input's artefact, its hash checked."""
        record, where = self.record_of(key), folder(self.results, self.study, self.graph[key])
        path, known = where / name, record.artefacts.get(name)
        if known is None or not path.is_file():
            raise UserError(f"{path}: missing, though {key} has a record; delete {where / 'result.json'} to make it again")
        if sha256(path) != known["sha256"]:
            raise UserError(f"{path}: sha256 is not the {known['sha256'][:12]}... of its record; delete result.json beside it")
        return path

    def label(self, labels, *inputs: str) -> None:
        """Add labels, and those of the inputs: what holds of a teacher holds of its student."""
        for text in [*labels, *(text for key in inputs for text in self.record_of(key).labels)]:
            if text not in self.labels:
                self.labels.append(text)

    def write(self, status: str = "ok", reason: str | None = None) -> None:
        files = {
            name: {"sha256": sha256(self.folder / name), "bytes": (self.folder / name).stat().st_size} for name in self.artefacts
        }
        record = {
            "schema": SCHEMA,
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
            "machine": machine(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            "modules": module_hashes(self.job.stage),
            "weights_dtype": self.weights_dtype,
            "predictions": [name for name in self.artefacts if Path(name).name.startswith("predictions.")],
            "quantization": self.quantization and self.quantization.model_dump(mode="json"),
            "row": self.job.row,
            "pretraining_seed": self.job.config.get("seed"),
        }
        text = json.dumps(sealed(json_safe(record)), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "result.json", text.encode())


def _finished(run: Run) -> Record | None:
    """The record of a run that need not be made again: its own, not void, its artefacts all there."""
    if state_of(run.results, run.study, run.job, run.graph) != "current":
        return None
    record = read(run.folder / "result.json")
    sizes = {name: known["bytes"] for name, known in record.artefacts.items()}
    there = all((run.folder / name).is_file() and (run.folder / name).stat().st_size == sizes[name] for name in sizes)
    return record if record.status != "void" and there else None


def execute(job: Job, study: str, results: Path, graph: Graph, stage) -> Record:
    """Run `stage(run)` and leave a record, whatever came of it. What is done already is not done again.

    A loss that is not finite is an outcome: the record says `diverged`, and the stages after it say `refused`. A UserError
    leaves a `refused` record and is raised again.
    """
    run = Run(job, study, results, graph)
    with lock(lock_of(run.state), f"{run.folder}: another process is making this result"):
        if job.stage not in VIEWS and (done := _finished(run)):
            if done.status == "ok":
                shutil.rmtree(run.state, ignore_errors=True)  # of a run killed after it had written its record
            return done
        run.begin()
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "result.json").unlink(missing_ok=True)
        try:
            if job.stage not in VIEWS and (reason := _bad_input(results, study, job, graph)):
                run.write("refused", reason)
            else:
                run.write("ok" if (outcome := stage(run)) is None else "void", outcome)
        except Diverged as error:
            run.write("diverged", str(error))
            return read(run.folder / "result.json")  # its last good state stays
        except UserError as error:
            with contextlib.suppress(OSError):  # on a full disk there is no room for a record either
                run.write("refused", str(error))
            raise
        shutil.rmtree(run.state)
    return read(run.folder / "result.json")
