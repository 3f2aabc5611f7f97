"""Define the training settings of a study; the defaults are the paper's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mobilebert.util.errors import allowed, shown

TASK_NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "squad_v1.1", "squad_v2.0")

Positive = Annotated[int, Field(gt=0)]

NotNegative = Annotated[int, Field(ge=0)]

Share = Annotated[float, Field(ge=0, le=1)]

Rate = Annotated[float, Field(gt=0, lt=1)]

# A process makes its share of a batch at once: 2^20 rows of 512 ids are 4 GiB. The largest batch in print for BERT has 2^16 rows.
LARGEST_BATCH = 2**20

Batch = Annotated[int, Field(gt=0, le=LARGEST_BATCH)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; an object never changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# How a training is computed and how often it saves itself: the same result, but for rounding.
EXECUTION = frozenset(("accumulate", "compile", "fused", "graph", "checkpoint_every", "share_teacher"))


def changed(name: str, mine: Mapping, full: Mapping, apart: Set[str]) -> list[str]:
    """One label that names what a group of settings changes of the paper's recipe, keys `apart` aside; none where it changes
    nothing."""
    values = [f"{key} {value}" for key, value in mine.items() if key not in apart and value != full[key]]
    return [f"changed: {name} {', '.join(values)}"] if values else []


class Training(Strict):
    steps: Positive
    warmup_steps: NotNegative
    batch_size: Batch
    length: Annotated[int, Field(ge=8)] = 512
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1.5e-3
    optimizer: Literal["lamb", "adamw"] = "lamb"
    beta2: Rate = 0.999
    weight_decay: Share = 0.01
    precision: Literal["fp32", "bf16"] = "fp32"
    max_minutes: Annotated[float, Field(gt=0)] | None = None  # the run ends then, and steps only scale the schedule; None: steps
    accumulate: Positive = 1  # micro-batches that a process makes of its share of a batch, for less memory
    compile: bool = False  # torch.compile of the encoder's blocks
    graph: bool = False  # steps from CUDA graphs, in one process; students that share a teacher's pass do without
    fused: bool = False  # a block's feed-forward networks as one Triton kernel: bf16, on a Hopper GPU
    checkpoint_every: Positive = 1000

    @model_validator(mode="after")
    def warmup_ends(self):
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} must not be more than batch_size {self.batch_size}")
        if self.fused and self.precision != "bf16":
            raise ValueError(f"fused: true needs precision bf16, not {self.precision}")
        return self


class Pretrain(Training):
    """MLM + NSP (paper section 4.2). Teacher: 500k steps of 4,096 sequences with LAMB; peak rate from the released code."""

    steps: Positive = 500_000
    warmup_steps: NotNegative = 10_000
    batch_size: Batch = 4096


class Search(Pretrain):
    """Tables 2 and 3: 125k steps of 2,048 sequences, "half of BERT's schedule" (paper section 4.1)."""

    steps: Positive = 125_000
    warmup_steps: NotNegative = 2_500
    batch_size: Batch = 2048


class Transfer(Training):
    """Knowledge transfer (paper section 3.5): 240k steps, 10k a layer for PKT."""

    steps: Positive = 240_000
    warmup_steps: NotNegative = 0  # of JKT; each stage of PKT warms up over its first tenth, AKT as distillation does
    batch_size: Batch = 4096
    lower_layers: Share = 0.1  # rate of layers already learnt, as a share of the current layer's; 0 freezes them
    factors: tuple[float, float, float, float] | None = None  # feature map, means, variances, attention; None: the recipe's
    share_teacher: bool = False  # one pass for all students at the same stages of the same teacher; as in Distill

    @field_validator("factors", mode="before")
    @classmethod
    def factors_from_list(cls, value):
        return tuple(value) if isinstance(value, list) else value

    @field_validator("factors")
    @classmethod
    def factors_weigh(cls, value):
        if value is not None and (min(value) < 0 or max(value) == 0):
            raise ValueError(f"a loss counts with a factor from 0, one of them above 0, not {list(value)}")
        return value


class Distill(Training):
    """Pre-training distillation (paper section 3.4), the teacher's schedule; alpha from the released code."""

    steps: Positive = 500_000
    warmup_steps: NotNegative = 10_000
    batch_size: Batch = 4096
    alpha: Share = 0.5  # share of the hard masked-LM labels
    temperature: Annotated[float, Field(gt=0)] = 1.0  # recipe released alone: multiplies the teacher's last hidden states
    share_teacher: bool = False  # one pass for all students that wait for the same one; takes the memory of all their weights


class TaskSetting(Strict):
    """What one task changes of `Finetune`; None keeps the study's value."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_size: Positive | None = None
    epochs: Positive | None = None
    length: Annotated[int, Field(ge=8)] | None = None
    train_rows: Positive | None = None
    eval_rows: Positive | None = None


class Finetune(Strict):
    """The paper's search, or one setting a task: the released code's defaults (5e-5, 3 epochs, batch 32, length 128) and for
    SQuAD its README's (4e-5, 5 epochs, length 384). The paper's search reads no such setting (but for the baseline, which is not
    searched and keeps the defaults): there it is refused."""

    search: Literal["paper", "quick", "none"] = "paper"  # see mobilebert.training.search
    halving: bool = False  # successive halving in place of the whole grid
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    batch_size: Batch = 32
    epochs: Positive = 3
    length: Annotated[int, Field(ge=8)] = 128
    warmup_share: Share = 0.1
    weight_decay: Share = 0.01
    precision: Literal["fp32", "bf16"] = "fp32"
    seeds: tuple[NotNegative, ...] = (0, 1, 2, 3, 4)
    train_rows: Positive | None = None
    eval_rows: Positive | None = None
    doc_stride: Positive = 128
    max_query_length: Positive = 64
    max_answer_length: Positive = 30
    baseline_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3  # of the bag of embeddings, never pre-trained
    together: Positive = 1  # runs that one process trains at once at most; on a GPU no more than its memory holds
    tasks: dict[str, TaskSetting] = {
        "squad_v1.1": TaskSetting(learning_rate=4e-5, epochs=5, length=384),
        "squad_v2.0": TaskSetting(learning_rate=4e-5, epochs=5, length=384),
    }

    @model_validator(mode="before")
    @classmethod
    def the_papers_search_reads_no_setting(cls, value):
        # With an unknown key, `search` misspelt, that key is what there is to say.
        if isinstance(value, dict) and value.get("search", "paper") == "paper" and value.keys() <= cls.model_fields.keys():
            tasks = value["tasks"] if isinstance(value.get("tasks"), dict) else {}
            groups = {"": value} | {f"tasks.{name}.": setting for name, setting in tasks.items() if isinstance(setting, dict)}
            for prefix, group in groups.items():
                for key in ("learning_rate", "batch_size", "epochs"):
                    if key in group:
                        raise ValueError(
                            f"{prefix}{key}: search: paper tries its own values; with search: quick or none it is read"
                        )
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def seeds_from_list(cls, value):
        return tuple(value) if isinstance(value, list) else value

    @field_validator("seeds")
    @classmethod
    def distinct(cls, value):
        if not value or len(set(value)) != len(value):
            raise ValueError("at least one seed, each once, is allowed")
        if max(value) >= 2**32:
            raise ValueError(f"a seed is below {2**32}, not {max(value)}")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def over_the_defaults(cls, value):
        """A study that sets one task keeps what it does not set of the others'."""
        if not isinstance(value, dict):
            return value
        merged = {name: setting.model_dump(exclude_none=True) for name, setting in cls.model_fields["tasks"].default.items()}
        for name, setting in value.items():
            own = setting.model_dump(exclude_none=True) if isinstance(setting, TaskSetting) else setting
            merged[name] = {**merged.get(name, {}), **own} if isinstance(own, dict) else own
        return merged

    @field_validator("tasks")
    @classmethod
    def known_tasks(cls, value):
        for name, setting in value.items():
            if name not in TASK_NAMES:
                raise ValueError(f"unknown task {shown(name)}; {allowed(TASK_NAMES)}")
            if (setting.batch_size or 0) > LARGEST_BATCH:
                raise ValueError(f"{name}.batch_size: at most {LARGEST_BATCH:,} is allowed, not {setting.batch_size}")
        return value

    @model_validator(mode="after")
    def halving_needs_a_search(self):
        if self.halving and self.search == "none":
            raise ValueError("halving: true needs a search: paper or quick")
        return self

    def changed(self, task: str) -> list[str]:
        """What of a task's setting is not the released code's default; rows, seeds and how the rest was chosen have their own
        labels."""
        chosen = {"search", "halving", "learning_rate", "batch_size", "epochs", "seeds", "train_rows", "eval_rows"}
        return changed("finetune", self.setting(task), Finetune().setting(task), chosen | {"baseline_learning_rate"})

    def setting(self, task: str) -> dict:
        """The resolved setting of one task: everything a fine-tuning run depends on, and no other task's values."""
        base = self.model_dump(exclude={"tasks", "together"})
        own = self.tasks.get(task, TaskSetting()).model_dump(exclude_none=True)
        if not task.startswith("squad"):
            for key in ("doc_stride", "max_query_length", "max_answer_length"):
                del base[key]
        return {**base, **own}


AXES = ("batch_size", "learning_rate", "epochs")
