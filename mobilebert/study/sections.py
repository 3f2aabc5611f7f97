"""Define the sections of a study that no training reads: data, scale, checkpoints, latency, expectations."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mobilebert.study.recipe import Batch, NotNegative, Positive, Rate, Strict
from mobilebert.util.errors import shown

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # every generator takes 32 bits

MOST_GENERATED = 10**8  # documents: 9 hours at 3,000 a second on one core, and 10 G words, three times BERT's corpus

LEAST_DOCUMENTS = 4  # two to train on and two held out: a random next segment comes from another document

MOST_TOKENS = 2**20  # of a vocabulary: its trainer makes room for all of them at once, and aborts where there is none

MOST_POSITIONS = 2**16  # rows of a table that every model has


def at_most(value: int | None, limit: int) -> int | None:
    """Return the value, for a validator. Raises ValueError if it is above the limit."""
    if value is not None and value > limit:
        raise ValueError(f"{value} is more than {limit}")
    return value


class Data(Strict):
    source: str = "hub"  # synthetic | local:<folder> | hub
    sums: str | None = None  # sha256 of a local folder's SHA256SUMS: the data that the study was written for
    seed: Seed = 0
    documents: Positive | None = None  # read at most so many of the corpus; None: all
    heldout_share: Rate = 0.005
    vocab_size: Positive | None = None  # of a tokenizer trained on the corpus; None: the source's vocab.txt

    @field_validator("vocab_size")
    @classmethod
    def trainable(cls, value: int | None) -> int | None:
        return at_most(value, MOST_TOKENS)

    @field_validator("source")
    @classmethod
    def known_source(cls, value: str) -> str:
        if value not in ("synthetic", "hub") and not (re.fullmatch(r"local:.+", value) and value.isprintable()):
            raise ValueError("synthetic, hub or local:<folder> is allowed")
        return value

    @model_validator(mode="after")
    def documents_suffice(self):
        most = MOST_GENERATED if self.source == "synthetic" else math.inf
        if self.documents is not None and not LEAST_DOCUMENTS <= self.documents <= most:
            raise ValueError(f"documents {self.documents}: {LEAST_DOCUMENTS} to {most:,} are allowed")
        return self

    @model_validator(mode="after")
    def local_is_pinned(self):
        if self.source.startswith("local:") and not re.fullmatch(r"[0-9a-f]{64}", self.sums or ""):
            raise ValueError("sums must be the sha256 of <folder>/SHA256SUMS, so that a result names the data it stands on")
        return self


class Scale(Strict):
    """Every width divided by one number, every depth by another: relations between the rows of a table survive."""

    width_divisor: Positive = 1
    layer_divisor: Positive = 1
    max_position_embeddings: Positive | None = None
    residual_init: bool = False  # residual-branch weights start at 1/sqrt(2 x layers): deep NoNorm diverges without

    @field_validator("max_position_embeddings")
    @classmethod
    def fits_every_model(cls, value: int | None) -> int | None:
        return at_most(value, MOST_POSITIONS)

    @property
    def scaled(self) -> bool:
        return self.width_divisor > 1 or self.layer_divisor > 1


class Checkpoint(Strict):
    """Published weights. A hub name at a revision, or a local folder of the hub's layout pinned by its weights' hash."""

    source: str
    revision: str = "main"
    sha256: str | None = None  # of model.safetensors, of a local folder

    @property
    def is_local(self) -> bool:
        return self.source.startswith((".", "/", "~"))

    @field_validator("source")
    @classmethod
    def folder_or_hub_name(cls, value: str) -> str:
        local = value.startswith((".", "/", "~"))
        named = re.fullmatch(r"(?:\w[\w.-]*/)?\w[\w.-]*", value, re.ASCII) and ".." not in value and "--" not in value
        if "\0" in value or not (local or named):
            raise ValueError("a folder (./x, /x, ~/x) or a hub name (owner/name) is allowed, no address")
        return value

    @field_validator("revision")
    @classmethod
    def branch_tag_or_commit(cls, value: str) -> str:
        if not re.fullmatch(r"[\w][\w./-]*", value, re.ASCII) or ".." in value:
            raise ValueError("a branch, tag or commit is allowed: letters, digits, '.', '_', '-' and '/', no '..'")
        return value

    @model_validator(mode="after")
    def local_is_pinned(self):
        if self.is_local and not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
            raise ValueError("sha256 must be that of the folder's model.safetensors")
        return self


class Latency(Strict):
    """Paper section 4.5: batch 1, length 128, 4 threads (a phone's big cores). Models interleaved in rounds."""

    length: Annotated[int, Field(ge=8)] = 128
    batch_size: Batch = 1
    threads: Positive = 4
    rounds: Positive = 50
    warmup: NotNegative = 5
    full_size: bool = True  # the paper's widths, whatever the study's scale: speed needs no trained weights
    models: tuple[str, ...] = (
        "bert-base",
        "mobilebert",
        "mobilebert-tiny",
        "mobilebert-no-opt",
        "mobilebert-layernorm-relu",
        "mobilebert-nonorm-gelu",
    )
    engines: tuple[Literal["pytorch", "onnxruntime", "onnxruntime-int8"], ...] = ("pytorch",)

    @field_validator("models", "engines", mode="before")
    @classmethod
    def from_list(cls, value):
        return tuple(value) if isinstance(value, list) else value

    @field_validator("models", "engines")
    @classmethod
    def each_once(cls, value):
        if twice := {name for name in value if value.count(name) > 1}:
            raise ValueError(f"{min(twice)!r} is given twice")
        return value


class Expectation(Strict):
    """A comparison that must hold inside one run: `<record>:<metric>` above or below another, by a margin.

    `<record>, <record>, ...:<metric>` is the mean over those records, one a seed; the values are shown beside it.
    """

    what: str
    metric: str  # e.g. finetune/mobilebert/sst2:accuracy
    above: str | float | None = None
    below: str | float | None = None
    by: float = 0.0
    void_unless: str | None = None  # `what` of an earlier expectation without which this comparison says nothing
    judged: bool = True  # False: the comparison is shown, whichever way it falls
    reason: str

    @field_validator("above", "below", mode="before")
    @classmethod
    def text_or_number(cls, value):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (value is None or isinstance(value, str) or number):
            raise ValueError(f"<record>:<metric> or a number is allowed, not {shown(value)}")
        return value

    @staticmethod
    def records(side: str) -> list[str]:
        """Ids of the records that one side of the comparison names."""
        return [key.strip() for key in side.partition(":")[0].split(",")]

    @model_validator(mode="after")
    def one_side(self):
        if (self.above is None) == (self.below is None):
            raise ValueError("exactly one of above, below is allowed")
        return self
