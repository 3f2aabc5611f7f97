"""Define the fine-tuning settings of a study, for all tasks and for single ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mobilebert.study.fields import (
    LARGEST_BATCH,
    TASK_NAMES,
    Batch,
    LearningRate,
    Length,
    NotNegative,
    Positive,
    Share,
    Strict,
    changed,
)
from mobilebert.util.errors import allowed, shown

AXES = ("batch_size", "learning_rate", "epochs")  # what the search chooses


class TaskSetting(Strict):
    """The settings of one task; a key that is null has the value in `Finetune`."""

    learning_rate: LearningRate | None = Field(
        default=None, description="Peak learning rate of this task; null: `finetune.learning_rate`."
    )
    batch_size: Positive | None = Field(
        default=None, description="Rows in a batch of this task, at most 1,048,576; null: `finetune.batch_size`."
    )
    epochs: Positive | None = Field(default=None, description="Passes over this task's training rows; null: `finetune.epochs`.")
    length: Length | None = Field(
        default=None, description="Most tokens of a row or window of this task; null: `finetune.length`."
    )
    train_rows: Positive | None = Field(default=None, description="Most training rows of this task; null: `finetune.train_rows`.")
    eval_rows: Positive | None = Field(
        default=None, description="Most development rows of this task; null: `finetune.eval_rows`."
    )


class Finetune(Strict):
    """The paper's search over settings (section 4.3), or one setting a task.

    The defaults are the released code's; those of SQuAD are from its README. `search: paper`
    refuses a learning rate, batch size or number of epochs: only the baseline, which is not
    searched, would read them, and it keeps the defaults.
    """

    search: Literal["paper", "quick", "none"] = Field(
        default="paper",
        description="How learning rate, batch size and epochs are chosen: `paper` tries 270 settings "
        "a task (section 4.3), `quick` tries six around the task's own, `none` takes the task's own.",
    )
    halving: bool = Field(
        default=False,
        description="Search by successive halving: all settings on a ninth of the training rows, the "
        "best third of them on a third, the best ninth on all. The paper tries every setting on all.",
    )
    learning_rate: LearningRate = Field(
        default=5e-5,
        description="Peak learning rate of AdamW; 5e-5 in the released code. `search: paper` tries "
        "1e-5 to 1e-4 and refuses this key.",
    )
    batch_size: Batch = Field(
        default=32,
        description="Rows in a batch; 32 in the released code. `search: paper` tries 16, 32 and 48 and refuses this key.",
    )
    epochs: Positive = Field(
        default=3,
        description="Passes over the training rows; 3 in the released code. `search: paper` tries 2 to 10 and refuses this key.",
    )
    length: Length = Field(
        default=128,
        description="Most tokens of a row, or of a SQuAD window; 128 in the released code. The model "
        "must have as many positions.",
    )
    warmup_share: Share = Field(
        default=0.1,
        description="Share of the steps in which the learning rate rises to its peak; 0.1 in the released code.",
    )
    weight_decay: Share = Field(
        default=0.01,
        description="Weight decay of all weights but biases and normalization; 0.01 in the released code.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Number format of the matrix products; with `bf16` the weights stay fp32."
    )
    seeds: tuple[NotNegative, ...] = Field(
        default=(0, 1, 2, 3, 4),
        description="Seeds of the runs with the chosen setting, each given once and below 2^32. A score is the median over them.",
    )
    train_rows: Positive | None = Field(
        default=None,
        description="Most training rows, drawn at random; null: all of them. A result on fewer rows is labelled `subset`.",
    )
    eval_rows: Positive | None = Field(
        default=None,
        description="Most development rows, drawn at random; null: all of them. A result on fewer rows is labelled `subset`.",
    )
    doc_stride: Positive = Field(
        default=128,
        description="Tokens from the start of one SQuAD window to the start of the next; 128 in the "
        "released code. It is no overlap.",
    )
    max_query_length: Positive = Field(
        default=64, description="Tokens of a SQuAD question that are kept; 64 in the released code."
    )
    max_answer_length: Positive = Field(
        default=30, description="Most tokens of a predicted SQuAD answer; 30 in the released code."
    )
    baseline_learning_rate: LearningRate = Field(
        default=1e-3,
        description="Peak learning rate of the bag of embeddings, which is never pre-trained nor searched.",
    )
    together: Positive = Field(
        default=1,
        description="Most trials that one process trains at once; on a GPU no more than its memory holds.",
    )
    tasks: dict[str, TaskSetting] = Field(
        default={
            "squad_v1.1": TaskSetting(learning_rate=4e-5, epochs=5, length=384),
            "squad_v2.0": TaskSetting(learning_rate=4e-5, epochs=5, length=384),
        },
        description="What single tasks change of the keys above. The default is the released README's "
        "for SQuAD; a study that sets some keys of a task keeps the others.",
    )

    @model_validator(mode="before")
    @classmethod
    def the_papers_search_reads_no_setting(cls, value):
        """Refuse the keys that `search: paper` does not read."""
        # If a key is unknown, say `serach`, the error is about that key.
        if isinstance(value, dict) and value.get("search", "paper") == "paper" and value.keys() <= cls.model_fields.keys():
            tasks = value["tasks"] if isinstance(value.get("tasks"), dict) else {}
            groups = {"": value} | {f"tasks.{name}.": setting for name, setting in tasks.items() if isinstance(setting, dict)}
            for prefix, group in groups.items():
                for key in ("learning_rate", "batch_size", "epochs"):
                    if key in group:
                        raise ValueError(
                            f"{prefix}{key}: search: paper tries its own values; remove the key, or set search to quick or none"
                        )
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def seeds_from_list(cls, value):
        """Return a tuple for YAML's list."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("seeds")
    @classmethod
    def distinct(cls, value):
        """Return the seeds. Raises ValueError if there is none, or one twice or above 32 bits."""
        if not value or len(set(value)) != len(value):
            raise ValueError("at least one seed, each once, is allowed")
        if max(value) >= 2**32:
            raise ValueError(f"a seed is below {2**32}, not {max(value)}")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def over_the_defaults(cls, value):
        """Return the study's tasks merged into the default ones."""
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
        """Return the tasks. Raises ValueError for an unknown name or too large a batch."""
        for name, setting in value.items():
            if name not in TASK_NAMES:
                raise ValueError(f"unknown task {shown(name)}; {allowed(TASK_NAMES)}")
            if (setting.batch_size or 0) > LARGEST_BATCH:
                raise ValueError(f"{name}.batch_size: at most {LARGEST_BATCH:,} is allowed, not {setting.batch_size}")
        return value

    @model_validator(mode="after")
    def halving_needs_a_search(self):
        """Refuse `halving` without a search."""
        if self.halving and self.search == "none":
            raise ValueError("halving: true needs a search: paper or quick")
        return self

    def changed(self, task: str) -> list[str]:
        """Return the label of what a task's setting changes of the released defaults, if anything.

        Rows, seeds and how the rest was chosen have labels of their own.
        """
        chosen = {"search", "halving", "learning_rate", "batch_size", "epochs", "seeds", "train_rows", "eval_rows"}
        return changed("finetune", self.setting(task), Finetune().setting(task), chosen | {"baseline_learning_rate"})

    def setting(self, task: str) -> dict:
        """Return all values that the fine-tuning of one task depends on, and no other task's."""
        base = self.model_dump(exclude={"tasks", "together"})
        own = self.tasks.get(task, TaskSetting()).model_dump(exclude_none=True)
        if not task.startswith("squad"):
            for key in ("doc_stride", "max_query_length", "max_answer_length"):
                del base[key]
        return {**base, **own}
