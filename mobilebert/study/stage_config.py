"""Define the typed configuration of a job of each stage: the typed view of `Job.config`.

`study.graph` builds a job's configuration, the fingerprint covers its JSON, and the record keeps
it. The classes here name every key once. `Graph.add` validates every job, so a missing or misspelt
key or a wrong value is an error before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mobilebert.study.fields import Batch, Engine, LearningRate, Length, NotNegative, Positive, Quantizer, Rate, Share, Strict
from mobilebert.study.recipe import AXES, Transfer
from mobilebert.study.sections import Seed

Architecture = dict[str, Any]  # fields of a model's configuration, `model_type` among them; see `study.architecture`
Minutes = Annotated[float, Field(gt=0)]
Precision = Literal["fp32", "bf16"]
Recipe = Literal["paper", "released"]
Strategy = Literal["none", "akt", "jkt", "pkt"]

# JSON has no tuples, so a list is accepted. The items stay strict.
Seeds = Annotated[tuple[NotNegative, ...], Field(strict=False)]
Losses = Annotated[tuple[Literal["fmt", "at"], ...], Field(strict=False)]
Factors = Annotated[tuple[float, float, float, float], Field(strict=False)]
Engines = Annotated[tuple[Engine, ...], Field(strict=False)]
Quantizers = Annotated[tuple[Quantizer, ...], Field(strict=False)]

SQUAD_KEYS = ("doc_stride", "max_query_length", "max_answer_length")


class StageConfig(Strict):
    """The configuration of a job.

    A key that only some jobs of the stage have defaults to None; all others are required.
    """


class DataConfig(StageConfig):
    """The corpus, the tables and the tokenizer. See `sections.Data`."""

    source: Literal["synthetic", "local", "hub"]  # without a local folder's path: `sums` pins its content
    sums: str | None
    seed: Seed
    documents: Positive | None
    heldout_share: Rate
    vocab_size: Positive | None


class ModelConfig(StageConfig):
    """The configuration of a job that has the model of one row."""

    architecture: Architecture


class CheckpointConfig(ModelConfig):
    """Published weights: a local folder with its hash or a hub name with its revision.

    See `sections.Checkpoint`.
    """

    sha256: str | None = None
    source: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def one_pin(self) -> Self:
        """Require either `sha256` or `source` and `revision`."""
        _need(self, self.sha256 is not None, ("sha256",))
        _need(self, self.sha256 is None, ("source", "revision"))
        return self


class OptimizationConfig(StageConfig):
    """The keys of one training's batches, schedule and optimizer. See `recipe.Training`."""

    steps: Positive
    warmup_steps: NotNegative
    batch_size: Batch
    length: Length
    learning_rate: LearningRate
    optimizer: Literal["lamb", "adamw"]
    beta2: Rate
    weight_decay: Share
    precision: Precision
    max_minutes: Minutes | None


class TrainingConfig(ModelConfig, OptimizationConfig):
    """The keys that pre-training, transfer and distillation share."""

    recipe: Recipe
    seed: NotNegative
    max_predictions: Positive | None


class PretrainConfig(TrainingConfig):
    """Masked LM and next-sentence prediction, without a teacher."""

    dropout: bool
    accumulate: Positive | None = None  # only with dropout, which each micro-batch draws separately

    @model_validator(mode="after")
    def micro_batches_draw_dropout(self) -> Self:
        """Require `accumulate` with dropout, refuse it without."""
        _need(self, self.dropout, ("accumulate",))
        return self


class StudentConfig(TrainingConfig):
    """The keys that transfer and distillation share."""

    control: Literal["none", "fresh-student", "shuffled-teacher"]
    strategy: Strategy


class LossesConfig(StageConfig):
    """The keys that choose and weigh the layer-wise losses."""

    strategy: Strategy
    losses: Losses
    factors: Factors | None
    lower_layers: Share


class LayerwiseConfig(LossesConfig):
    """The keys of the layer-wise losses, in a transfer job (JKT, PKT) or in distillation (AKT)."""

    recipe: Recipe
    steps: Positive
    warmup_steps: NotNegative


class TransferConfig(StudentConfig, LayerwiseConfig):
    """Knowledge transfer. See `recipe.Transfer`."""


class JointTransferConfig(LossesConfig, OptimizationConfig):
    """The transfer's settings inside a distillation job (AKT).

    The training takes its batches, learning rate and steps from the distillation job instead.
    """


def layerwise_config(
    recipe: Recipe, strategy: Strategy, losses: Losses, transfer: Transfer | JointTransferConfig
) -> LayerwiseConfig:
    """Return the keys of the layer-wise losses of a student's transfer.

    transfer: the study's section, or the transfer inside a distillation job.
    """
    return LayerwiseConfig(
        recipe=recipe,
        strategy=strategy,
        losses=losses,
        factors=transfer.factors,
        lower_layers=transfer.lower_layers,
        steps=transfer.steps,
        warmup_steps=transfer.warmup_steps,
    )


class DistillConfig(StudentConfig):
    """Pre-training distillation. See `recipe.Distill`."""

    alpha: Share
    temperature: Annotated[float, Field(gt=0)]
    transfer: JointTransferConfig | None

    @property
    def layerwise(self) -> LayerwiseConfig | None:
        """Return the settings of AKT's layer-wise losses; None for another strategy."""
        if self.transfer is None:
            return None
        return layerwise_config(self.recipe, self.transfer.strategy, self.transfer.losses, self.transfer)


class AttentionConfig(StageConfig):
    """The attention of a student beside that of its teacher, which is a row."""

    teacher: str


class LengthsConfig(StageConfig):
    """The lengths in tokens to which a task's texts are cut.

    Only SQuAD has those of windows, questions and answers.
    """

    length: Length
    doc_stride: Positive | None = None
    max_query_length: Positive | None = None
    max_answer_length: Positive | None = None


class TaskConfig(LengthsConfig):
    """The keys that fine-tuning and quantization share. See `recipe.Finetune`."""

    task: str
    search: Literal["paper", "quick", "none"]
    halving: bool
    batch_size: Batch | None = None  # the paper's search has fixed values of these three
    learning_rate: LearningRate | None = None
    epochs: Positive | None = None
    warmup_share: Share
    weight_decay: Share
    precision: Precision
    seeds: Seeds
    train_rows: Positive | None
    eval_rows: Positive | None

    @model_validator(mode="after")
    def own_setting_unless_searched(self) -> Self:
        """Refuse a setting if the paper's search chooses it, and SQuAD's keys for other tasks."""
        _need(self, self.search != "paper", AXES)
        _need(self, self.task.startswith("squad"), SQUAD_KEYS)
        return self


class FinetuneConfig(TaskConfig, ModelConfig):
    """Fine-tuning of one model on one task."""

    recipe: Recipe


class QuantizeConfig(TaskConfig):
    """int8 quantization of the model that the fine-tuning job of the same name trained.

    also: engines beside ONNX Runtime's dynamic quantization.
    """

    also: Quantizers = ()


class LatencyConfig(StageConfig):
    """Timing of several models. See `sections.Latency`."""

    architectures: dict[str, Architecture]  # model row -> architecture
    engines: Engines
    length: Length
    batch_size: Batch
    threads: Positive
    rounds: Positive
    warmup: NotNegative


# Views (report, track, check) read the records of other jobs. Their configuration is only compared.
CONFIGS: Mapping[str, type[StageConfig]] = {
    "data": DataConfig,
    "pretrain": PretrainConfig,
    "checkpoint": CheckpointConfig,
    "transfer": TransferConfig,
    "distill": DistillConfig,
    "attention": AttentionConfig,
    "finetune": FinetuneConfig,
    "quantize": QuantizeConfig,
    "latency": LatencyConfig,
}


def stage_config(stage: str, config: Mapping[str, Any]) -> StageConfig:
    """Return the typed configuration of a job, from its JSON.

    Raises ValueError, one line with the key, if the configuration is not that of the stage.
    """
    try:
        return CONFIGS[stage].model_validate(config)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{key}: {problem['msg']}" if key else problem["msg"].removeprefix("Value error, ")) from None


def _need(config: StageConfig, needed: bool, keys: tuple[str, ...]) -> None:
    """Raise ValueError unless the configuration has all of the keys (if needed) or none of them."""
    for key in keys:
        if (getattr(config, key) is not None) != needed:
            raise ValueError(f"{key}: {'missing' if needed else 'not allowed here'}")
