"""Define a study's data, scale, checkpoints, latency and expectations."""

from __future__ import annotations

import math
import re
from typing import Annotated, get_args

from pydantic import Field, field_validator, model_validator

from mobilebert.study.fields import Batch, Engine, Length, NotNegative, Positive, Rate, Strict
from mobilebert.util.errors import allowed, shown

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # every random generator takes 32 bits

# Documents: 9 hours at 3,000 a second on one core, and 10 G words, three times BERT's corpus.
MOST_GENERATED = 10**8

# Two to train on and two held out: a random next segment comes from another document.
LEAST_DOCUMENTS = 4

# Entries of a vocabulary: its trainer allocates memory for all of them at once, and the process
# aborts if there is not enough.
MOST_TOKENS = 2**20

MOST_POSITIONS = 2**16  # rows of the position embeddings, which every model allocates


def at_most(value: int | None, limit: int) -> int | None:
    """Return the value, for a validator. Raises ValueError if it is above the limit."""
    if value is not None and value > limit:
        raise ValueError(f"{value} is more than {limit}")
    return value


class Data(Strict):
    """The corpus, the tasks and the tokenizer."""

    source: str = Field(
        default="hub",
        description="Where the corpus and the tasks come from: `synthetic` (generated), `hub` (Hugging "
        "Face, the corpora streamed) or `local:<folder>`.",
    )
    sums: str | None = Field(
        default=None,
        description="sha256 of a local folder's SHA256SUMS, which pins the data that the study was "
        "written for. `local:<folder>` needs it; null for the other sources.",
    )
    seed: Seed = Field(
        default=0,
        description="Seed of the generated data. With another source it chooses which documents are held out.",
    )
    documents: Positive | None = Field(
        default=None,
        description="Number of documents after which reading the corpus stops: 4 or more, with "
        "`source: synthetic` at most 100,000,000. null: all, or 600 with `source: synthetic`.",
    )
    heldout_share: Rate = Field(
        default=0.005, description="Share of the documents that are held out, chosen by the hash of their text."
    )
    vocab_size: Positive | None = Field(
        default=None,
        description="Entries of the vocabulary, at most 1,048,576. null: the source's vocab.txt; if it "
        "has none, as many as training the tokenizer finds, up to BERT's 30,522. A size other than that of "
        "vocab.txt: a vocabulary trained on the corpus without the documents held out.",
    )

    @field_validator("vocab_size")
    @classmethod
    def trainable(cls, value: int | None) -> int | None:
        """Return the size. Raises ValueError if it is above MOST_TOKENS."""
        return at_most(value, MOST_TOKENS)

    @field_validator("source")
    @classmethod
    def known_source(cls, value: str) -> str:
        """Return the source. Raises ValueError if it is none of the three kinds."""
        if value not in ("synthetic", "hub") and not (re.fullmatch(r"local:.+", value) and value.isprintable()):
            raise ValueError("synthetic, hub or local:<folder> is allowed")
        return value

    @model_validator(mode="after")
    def documents_suffice(self):
        """Refuse too few documents to split, or too many to generate."""
        most = MOST_GENERATED if self.source == "synthetic" else math.inf
        if self.documents is not None and not LEAST_DOCUMENTS <= self.documents <= most:
            raise ValueError(f"documents {self.documents}: {LEAST_DOCUMENTS} to {most:,} are allowed")
        return self

    @model_validator(mode="after")
    def local_is_pinned(self):
        """Refuse a local folder without the hash of its SHA256SUMS."""
        if self.source.startswith("local:") and not re.fullmatch(r"[0-9a-f]{64}", self.sums or ""):
            raise ValueError("sums must be the sha256 of <folder>/SHA256SUMS, which pins the data of every result")
        return self


class Scale(Strict):
    """One divisor for all widths and one for all depths, so that models keep their proportions."""

    width_divisor: Positive = Field(
        default=1, description="Number by which every width of every model is divided; it must divide all of them."
    )
    layer_divisor: Positive = Field(
        default=1, description="Number by which every model's number of layers is divided, rounded, at least 1."
    )
    max_position_embeddings: Positive | None = Field(
        default=None,
        description="Positions of every model, at most 65,536; null: the paper's 512. Every `length` of the study must fit.",
    )
    residual_init: bool = Field(
        default=False,
        description="Start the weights of residual branches at 1/sqrt(2 x layers) of their size, in all "
        "models but BERT. Deep ones with NoNorm diverge without it; it is not in the paper.",
    )

    @field_validator("max_position_embeddings")
    @classmethod
    def fits_every_model(cls, value: int | None) -> int | None:
        """Return the positions. Raises ValueError if they are more than MOST_POSITIONS."""
        return at_most(value, MOST_POSITIONS)

    @property
    def scaled(self) -> bool:
        """Return whether any width or depth is divided."""
        return self.width_divisor > 1 or self.layer_divisor > 1


class Checkpoint(Strict):
    """Published weights: a hub name at a revision, or a folder pinned by its weights' hash."""

    source: str = Field(
        description="Where the weights are: a hub name (`owner/name`), or a local folder (`./x`, `/x`, "
        "`~/x`) of the hub's layout."
    )
    revision: str = Field(default="main", description="Branch, tag or commit of a hub name; not read for a local folder.")
    sha256: str | None = Field(
        default=None,
        description="sha256 of a local folder's model.safetensors. A local folder needs it; null for a hub name.",
    )

    @property
    def is_local(self) -> bool:
        """Return whether the source is a folder."""
        return self.source.startswith((".", "/", "~"))

    @field_validator("source")
    @classmethod
    def folder_or_hub_name(cls, value: str) -> str:
        """Return the source. Raises ValueError if it is neither a folder nor a hub name."""
        local = value.startswith((".", "/", "~"))
        named = re.fullmatch(r"(?:\w[\w.-]*/)?\w[\w.-]*", value, re.ASCII) and ".." not in value and "--" not in value
        if "\0" in value or not (local or named):
            raise ValueError("a folder (./x, /x, ~/x) or a hub name (owner/name) is allowed, not a URL")
        return value

    @field_validator("revision")
    @classmethod
    def branch_tag_or_commit(cls, value: str) -> str:
        """Return the revision. Raises ValueError if git would not take it for one."""
        if not re.fullmatch(r"[\w][\w./-]*", value, re.ASCII) or ".." in value:
            raise ValueError("a branch, tag or commit is allowed: letters, digits, '.', '_', '-' and '/', no '..'")
        return value

    @model_validator(mode="after")
    def local_is_pinned(self):
        """Refuse a local folder without the hash of its weights."""
        if self.is_local and not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
            raise ValueError("sha256 must be that of the folder's model.safetensors")
        return self


class Latency(Strict):
    """Timing of one forward pass (paper section 4.5), the models interleaved in rounds."""

    length: Length = Field(default=128, description="Tokens of a timed sequence; 128 in the paper (section 4.5).")
    batch_size: Batch = Field(default=1, description="Sequences in a timed batch; 1 in the paper, by implication.")
    threads: Positive = Field(
        default=4, description="CPU threads of a model; 4 in the paper (section 4.5), the big cores of a phone."
    )
    rounds: Positive = Field(default=50, description="Timed rounds; each runs every model on every engine once.")
    warmup: NotNegative = Field(default=5, description="Rounds before the timed ones, which are not recorded.")
    full_size: bool = Field(
        default=True,
        description="Time the paper's widths whatever the study's scale; speed needs no trained weights. "
        "false: time the scaled models.",
    )
    models: tuple[str, ...] = Field(
        default=(
            "bert-base",
            "mobilebert",
            "mobilebert-tiny",
            "mobilebert-no-opt",
            "mobilebert-layernorm-relu",
            "mobilebert-nonorm-gelu",
        ),
        description="Rows of the paper's tables, and presets, to time, each given once. The default is those of Tables 4 and 7.",
    )
    engines: tuple[Engine, ...] = Field(default=("pytorch",), description="Engines that run every model, each given once.")

    @field_validator("models", "engines", mode="before")
    @classmethod
    def from_list(cls, value):
        """Return a tuple for YAML's list."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("engines", mode="before")
    @classmethod
    def known_engines(cls, value):
        """Return the engines. Raises ValueError for an unknown one, with the nearest names."""
        for name in value if isinstance(value, list | tuple) else ():
            if name not in get_args(Engine):
                raise ValueError(f"unknown engine {shown(name)}; {allowed(get_args(Engine), name)}")
        return value

    @field_validator("models", "engines")
    @classmethod
    def each_once(cls, value):
        """Return the names. Raises ValueError if one is given twice."""
        if twice := {name for name in value if value.count(name) > 1}:
            raise ValueError(f"{min(twice)!r} is given twice")
        return value


class Expectation(Strict):
    """A metric in a study's records that must be above or below a bound, by a margin."""

    what: str = Field(description="The expectation in words; `void_unless` refers to it.")
    metric: str = Field(
        description="The value to compare, `<record>:<metric>`, as finetune/mobilebert/sst2:accuracy. "
        "`<record>, <record>:<metric>` is the mean over records, say one a seed."
    )
    above: str | float | None = Field(
        default=None,
        description="Bound that the metric must be above: a number, or a value as in `metric`. Either "
        "`above` or `below` is given, the other is null.",
    )
    below: str | float | None = Field(
        default=None, description="Bound that the metric must be below: a number, or a value as in `metric`."
    )
    by: float = Field(
        default=0.0,
        description="Margin from the bound, in the metric's unit; a negative one allows the metric to "
        "miss the bound. 0: equal values fail.",
    )
    void_unless: str | None = Field(
        default=None,
        description="`what` of an earlier expectation that is a condition of this one: if that one does "
        "not pass, this one is void. null: no condition.",
    )
    judged: bool = Field(default=True, description="Fail the study if the comparison does not hold; false: only show it.")
    reason: str = Field(description="Why the study expects it, shown beside the outcome.")

    @field_validator("above", "below", mode="before")
    @classmethod
    def text_or_number(cls, value):
        """Return the bound. Raises ValueError if it is neither text nor a finite number."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (value is None or isinstance(value, str) or number):
            raise ValueError(f"<record>:<metric> or a number is allowed, not {shown(value)}")
        return value

    @staticmethod
    def records(side: str) -> list[str]:
        """Return the ids of the records that one side of the comparison names."""
        return [key.strip() for key in side.partition(":")[0].split(",")]

    @model_validator(mode="after")
    def one_side(self):
        """Refuse an expectation with two bounds or none."""
        if (self.above is None) == (self.below is None):
            raise ValueError("exactly one of above, below is allowed")
        return self


MOST_GATES = 10  # more metrics leave each of them too wide an interval
TIMING = "_ms"


class Gate(Strict):
    """The metrics that `mobilebert compare BASELINE NEW --gate` judges."""

    metrics: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="At most 10 metrics, `<record>:<metric>`, each judged by fresh seeds. A timing is a "
        "ratio to another row of the same run, `<record>:<metric> / <record>:<metric>`.",
    )
    fresh: Positive = Field(
        default=5, description="Fresh seeds that the gate needs if a run's values are not the baseline's to the digit."
    )
    ignore: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Records that a run may lack, or that may be void or of another experiment: the gate lists them and "
        "does not fail.",
    )

    @field_validator("metrics")
    @classmethod
    def few_and_timings_as_ratios(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return the metrics. Raises ValueError for too many, one twice, or a bare time."""
        if len(value) > MOST_GATES or len(set(value)) != len(value):
            raise ValueError(f"at most {MOST_GATES} metrics, each once, are allowed, not {len(value)}")
        for text in value:
            sides = text.split(" / ")
            timings = [side.endswith(TIMING) for side in sides]
            if "," in text:
                raise ValueError(f"{shown(text)}: a gate reads one record, not the mean of several")
            if len(sides) > 2 or any(timings) != all(timings) or (len(sides) == 2) != all(timings):
                raise ValueError(
                    f"{shown(text)}: a timing is divided by another of the same run, as A:p50_ms / B:p50_ms; no other metric"
                )
        return value
