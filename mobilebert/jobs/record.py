"""Define and read a job's record, `result.json`, written atomically once, when the job ends.

results/<study>/<stage>/<name>/result.json             the record, with the artefacts beside it
results/<study>/.state/<stage>-<name>-<fingerprint>/   the saved state: checkpoints and curves of a
                                                       running or killed job, never an output
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobilebert.study.code_hash import digest
from mobilebert.study.load import first_problem
from mobilebert.util.errors import UserError

RECORD_SCHEMA = 1  # of result.json: raised when a key changes its meaning, never when one is added


class Quantization(BaseModel):
    """How an int8 file was built, and on which processor it was scored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    method: str  # dynamic, static, weight-only, quantization-aware
    engine: str  # the program that wrote the file and scored it, with its version
    weight_range: tuple[int, int]  # least and greatest integer that a weight of a matrix product takes
    activation_type: str  # uint8, int8, float32
    saturates: bool  # whether 16-bit sums of two products can overflow on a processor without VNNI
    scored_on: dict[str, str] = {}  # cpu (model name), isa (avx2, avx512_vnni, amx_int8, ...)
    bytes_before: int
    bytes_after: int
    int8_flops_share: float | None = None  # of the matrix products' FLOPs; None: not counted
    ran_int8_flops_share: float | None = None  # by the kernels that ran: an engine may fall back to float32
    layer_errors: dict[str, float] = {}  # encoder layer -> |int8 - float32| / |float32| of its output on one row
    calibration_rows: int = 0  # rows of the training split that fixed the ranges of activations; 0: none did
    broken_layers: tuple[str, ...] = ()  # with an error above 0.1, or one that is not finite: it is not in `layer_errors`


class AttentionMaps(BaseModel):
    """The attention of one model: layer, from 1 -> head -> looking token -> share of each token.

    weights: the stage that left the weights; "initial": those before the first step.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    weights: str
    layers: dict[int, tuple[tuple[tuple[float, ...], ...], ...]]


class Attention(BaseModel):
    """The attention of several models, the teacher first, on one text of `tokens`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    tokens: tuple[str, ...]
    maps: tuple[AttentionMaps, ...]


class Record(BaseModel):
    """One result.json. A metric is a fraction (accuracy 0.91), nats, milliseconds or a count."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = Field(RECORD_SCHEMA, alias="schema")
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
    weights_dtype: dict[str, str] = {}  # source of weights -> their type in the file; loaded as float32
    predictions: tuple[str, ...] = ()  # the artefacts that hold a prediction for every scored row
    quantization: Quantization | None = None
    quantizations: dict[str, Quantization] = {}  # by engine; `quantization` is that of the first
    row: str | None = None  # the paper's model row that this record belongs to
    pretraining_seed: int | None = None  # a row may have records of several pre-training seeds
    usage: dict[str, list[tuple[float, float]]] = {}  # of the machine while it trained: name -> (seconds, value)
    attention: Attention | None = None
    commit: str | None = None  # git commit of the code, with "-dirty" if tracked files differed from it
    checksum: str | None = None  # sha256 of this record's content without this key

    _seal: Literal["sealed", "unsealed", "edited"] = "unsealed"

    @property
    def seal(self) -> Literal["sealed", "unsealed", "edited"]:
        """Return whether the file's content fits its checksum (sealed) or does not (edited).

        `unsealed`: written before records had a checksum.
        """
        return self._seal

    @property
    def id(self) -> str:
        """Return the id of the record's job."""
        return f"{self.stage}/{self.name}" if self.name else self.stage


def read_record(path: Path) -> Record:
    """Return the record in a file. Raises UserError if it cannot be read or is not a record."""
    try:
        content = path.read_bytes()
        record = Record.model_validate_json(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a record of schema {RECORD_SCHEMA}: {first_problem(error, Record)}") from None
    if record.checksum is not None:
        record._seal = "edited"
        with contextlib.suppress(ValueError):  # the file holds NaN, which no stage writes
            record._seal = "sealed" if record.checksum == checksum(json.loads(content)) else "edited"
    return record


def sealed(content: dict) -> dict:
    """Return a record's content with its checksum."""
    return content | {"checksum": checksum(content)}


def checksum(content: dict) -> str:
    """Return the sha256 of a record's content without `checksum`, whatever the order of keys."""
    return digest({key: value for key, value in content.items() if key != "checksum"})
