"""Define the training settings of a study; the defaults are the paper's recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mobilebert.study.fields import TASK_NAMES, Batch, LearningRate, Length, NotNegative, Positive, Rate, Share, Strict
from mobilebert.study.finetune import AXES, Finetune, TaskSetting

# The second line is re-exported: other modules import every training setting from here.
__all__ = ["EXECUTION", "Distill", "Pretrain", "Search", "Training", "Transfer"]
__all__ += ["AXES", "TASK_NAMES", "Finetune", "TaskSetting"]

# Keys that say how a training is computed and how often it saves itself. The result is the same
# but for rounding.
EXECUTION = frozenset(("accumulate", "compile", "fused", "graph", "checkpoint_every", "share_teacher"))


class Training(Strict):
    """Keys that every training before fine-tuning has."""

    steps: Positive = Field(description="Optimizer steps.")
    warmup_steps: NotNegative = Field(description="Steps in which the learning rate rises to its peak.")
    batch_size: Batch = Field(description="Sequences in a batch, over all processes.")
    length: Length = Field(
        default=512,
        description="Tokens of a sequence; 512 in the released code. The model must have as many positions.",
    )
    learning_rate: LearningRate = Field(
        default=1.5e-3, description="Peak learning rate; 0.0015 in the released code, the paper prints none."
    )
    optimizer: Literal["lamb", "adamw"] = Field(default="lamb", description="Optimizer; LAMB in the paper (section 4.2).")
    beta2: Rate = Field(default=0.999, description="Decay rate of the optimizer's second moments; 0.999 in the released code.")
    weight_decay: Share = Field(
        default=0.01,
        description="Weight decay of all weights but biases and normalization; 0.01 in the released code.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Number format of the matrix products; with `bf16` the weights stay fp32."
    )
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Minutes after which the training ends, however many steps it took; `steps` then "
        "only scales the schedule. null: it ends after `steps`.",
    )
    accumulate: Positive = Field(
        default=1,
        description="Micro-batches that a process makes of its share of a batch, to need less memory; at most `batch_size`.",
    )
    compile: bool = Field(default=False, description="Compile the encoder's blocks with torch.compile.")
    graph: bool = Field(
        default=False,
        description="Replay steps from CUDA graphs, in one process on a GPU. Students that share a teacher's pass do without.",
    )
    fused: bool = Field(
        default=False,
        description="Run a block's feed-forward networks as one Triton kernel; needs `precision: bf16` and a Hopper GPU.",
    )
    checkpoint_every: Positive = Field(
        default=1000,
        description="Steps between two saved states, from which a killed training goes on. It also "
        "saves itself every few seconds, in at most 2 % of its time.",
    )

    @model_validator(mode="after")
    def warmup_ends(self):
        """Refuse values of one training that exclude each other."""
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} must not be more than batch_size {self.batch_size}")
        if self.fused and self.precision != "bf16":
            raise ValueError(f"fused: true needs precision bf16, not {self.precision}")
        return self


class Pretrain(Training):
    """Pre-training with masked LM and NSP (paper section 4.2)."""

    steps: Positive = Field(default=500_000, description="Optimizer steps; 500,000 in the paper (section 4.2).")
    warmup_steps: NotNegative = Field(
        default=10_000,
        description="Steps in which the learning rate rises to its peak, fewer than `steps`; 10,000 in "
        "the released code, the paper prints none.",
    )
    batch_size: Batch = Field(
        default=4096, description="Sequences in a batch, over all processes; 4,096 in the paper (section 4.2)."
    )
    dropout: bool = Field(
        default=True,
        description="Train with the dropout of the paper's row, if it has any; the paper's students have "
        "none. false: no model has dropout in pre-training.",
    )


class Search(Pretrain):
    """Pre-training for Tables 2 and 3: "half of BERT's schedule" (paper section 4.1)."""

    steps: Positive = Field(default=125_000, description="Optimizer steps; 125,000 in the paper (section 4.1).")
    warmup_steps: NotNegative = Field(
        default=2_500,
        description="Steps in which the learning rate rises to its peak, fewer than `steps`. The "
        "default is the same share of the steps as in pre-training; the paper prints none.",
    )
    batch_size: Batch = Field(
        default=2048, description="Sequences in a batch, over all processes; 2,048 in the paper (section 4.1)."
    )


class Transfer(Training):
    """Knowledge transfer (paper section 3.5)."""

    steps: Positive = Field(
        default=240_000,
        description="Optimizer steps of the whole transfer; 240,000 in the paper, 10,000 for each of 24 "
        "layers with PKT (section 3.5).",
    )
    warmup_steps: NotNegative = Field(
        default=0,
        description="Warm-up steps of JKT, fewer than `steps`. Each stage of PKT warms up over its "
        "first tenth, AKT warms up as distillation does.",
    )
    batch_size: Batch = Field(
        default=4096, description="Sequences in a batch, over all processes; 4,096 as in the paper's pre-training."
    )
    lower_layers: Share = Field(
        default=0.1,
        description="Learning rate of the layers that PKT has taught already, as a share of the current "
        'layer\'s; 0 freezes them. 0.1 in the released code, "small" in the paper.',
    )
    factors: tuple[float, float, float, float] | None = Field(
        default=None,
        description="Factors of four losses: feature map, means, variances, attention. null: the "
        "recipe's, 1, 0, 0, 1 for `paper` and 100, 5000, 5, 1 for `released`.",
    )
    share_teacher: bool = Field(
        default=False,
        description="Train all students at the same stages of the same teacher in one process, with one "
        "teacher pass a step; takes the memory of all their weights.",
    )

    @field_validator("factors", mode="before")
    @classmethod
    def factors_from_list(cls, value):
        """Return a tuple for YAML's list."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("factors")
    @classmethod
    def factors_weigh(cls, value):
        """Return the factors. Raises ValueError if one is negative or all are 0."""
        if value is not None and (min(value) < 0 or max(value) == 0):
            raise ValueError(f"each factor must be 0 or more, and one of them above 0, not {list(value)}")
        return value


class Distill(Training):
    """Pre-training distillation (paper section 3.4)."""

    steps: Positive = Field(default=500_000, description="Optimizer steps; 500,000 in the paper, as for the teacher.")
    warmup_steps: NotNegative = Field(
        default=10_000,
        description="Steps in which the learning rate rises to its peak, fewer than `steps`; 10,000 in "
        "the released code, the paper prints none.",
    )
    batch_size: Batch = Field(
        default=4096, description="Sequences in a batch, over all processes; 4,096 in the paper, as for the teacher."
    )
    alpha: Share = Field(
        default=0.5,
        description="Share of the hard masked-LM labels in the loss, beside the teacher's soft ones "
        "(section 3.4); 0.5 in the released code, the paper prints none.",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=1.0,
        description="Factor of the teacher's last hidden states, as in the released code. Only "
        "`recipe: released` may set it; 1 changes nothing.",
    )
    share_teacher: bool = Field(
        default=False,
        description="Train all students that wait for the same teacher in one process, with one teacher "
        "pass a step; takes the memory of all their weights.",
    )
