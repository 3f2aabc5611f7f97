"""Define a study: its sections, and which of their values exclude each other."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mobilebert import paper
from mobilebert.modeling import presets
from mobilebert.study.fields import TASK_NAMES, Quantizer, Strict, changed
from mobilebert.study.finetune import Finetune
from mobilebert.study.pretraining_seeds import row_of, seeds_of, with_seeds
from mobilebert.study.recipe import EXECUTION, Distill, Pretrain, Search, Transfer
from mobilebert.study.sections import Checkpoint, Data, Expectation, Gate, Latency, Scale, Seed
from mobilebert.util.errors import allowed, shown

SCHEMA = 1  # version of a study file: raised if a key changes its meaning, not if one is added

# The name of a study is a folder, an argument in a shell and a part of a URL.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

BAG = "bag-of-embeddings"

# A bag of embeddings has no order of words, so it cannot mark a span of text.
WITHOUT_ORDER = tuple(task for task in TASK_NAMES if not task.startswith("squad"))

QUANTIZED_TASKS = ("mnli", "qnli", "mrpc", "sst2", "squad_v1.1")  # the columns of Table 6


Tasks = Literal["all"] | tuple[str, ...]


class Study(Strict):
    """All values that decide the results of a study. The defaults are the paper's recipe."""

    schema_version: Literal[1] = Field(
        default=SCHEMA,
        alias="schema",
        description="Version of the study file's format.",
    )
    description: str = Field(description="The study in one line; its page and its tables print it.")
    recipe: Literal["paper", "released"] = Field(
        default="paper",
        description="Where the paper and the released code differ in numbers: `paper` takes the printed "
        "equations, `released` does as the code.",
    )
    seed: Seed = Field(
        default=0,
        description="Seed of pre-training, transfer and distillation; a row of the tables may add its "
        "own number. Fine-tuning has `finetune.seeds`.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cuda", description="What the study trains on: `cpu`, or an NVIDIA GPU (`cuda`)."
    )
    data: Data = Field(default=Data(), description="The corpus, the tasks and the tokenizer.")
    scale: Scale = Field(
        default=Scale(),
        description="Divisors that make all models smaller; with any of them above 1 results are labelled `scaled`.",
    )
    pretrain: Pretrain = Field(
        default=Pretrain(),
        description="Pre-training of the teacher and of other models without one, with masked LM and "
        "next-sentence prediction (section 4.2).",
    )
    search: Search = Field(
        default=Search(),
        description='Pre-training of the models of Tables 2 and 3, on "half of BERT\'s schedule" (section 4.1).',
    )
    transfer: Transfer = Field(
        default=Transfer(),
        description="Knowledge transfer, layer by layer, from the teacher to a student (section 3.5): "
        "auxiliary (AKT), joint (JKT) or progressive (PKT).",
    )
    distill: Distill = Field(
        default=Distill(), description="Pre-training distillation of a student after the transfer (section 3.4)."
    )
    finetune: Finetune = Field(
        default=Finetune(), description="Fine-tuning on GLUE and SQuAD, with or without a search (section 4.3)."
    )
    latency: Latency = Field(
        default=Latency(), description="Timing of one forward pass, the models interleaved in rounds (section 4.5)."
    )
    checkpoints: dict[str, Checkpoint] = Field(
        default={},
        description="Published weights in place of pre-training, by model: a row of the paper's tables, "
        "or a baseline of your own name, which `run` must name too.",
    )
    run: dict[str, Literal["all"] | tuple[str, ...]] = Field(
        default={"mobilebert": "all"},
        description="Models to run, rows of the tables or names in `checkpoints`, each with the tasks to "
        "fine-tune it on. `[]`: the model is pre-trained and not fine-tuned.",
    )
    seeds: dict[str, Annotated[int, Field(ge=1, le=100)]] = Field(
        default={},
        description="Rows that are pre-trained with several seeds, each with their number. With 3 the row `scratch` "
        "also has the models `scratch-seed-1` and `scratch-seed-2`; `run` and `quantize` of the row hold for them too.",
    )
    quantize: dict[str, Literal["all"] | tuple[str, ...]] = Field(
        default={"mobilebert": "all"},
        description="Models to quantize to 8 bits, each with its tasks; all are the five of Table 6: "
        "mnli, qnli, mrpc, sst2, squad_v1.1.",
    )
    quantize_also: Annotated[tuple[Quantizer, ...], Field(strict=False)] = Field(
        default=(),
        description="Further ways that quantize and score the models of `quantize`: ONNX Runtime with ranges of "
        "activations fixed on training rows, or after quantization-aware training; OpenVINO through NNCF; LiteRT with 8-bit "
        "weights or in integers alone; quanto's 8-bit weights in PyTorch. Table 6 has ONNX Runtime's dynamic quantization.",
    )
    expect: tuple[Expectation, ...] = Field(
        default=(),
        description="Comparisons that must hold among the study's records; `mobilebert check` exits with 1 if one does not.",
    )
    gate: Gate = Field(
        default=Gate(), description="The metrics that `mobilebert compare --gate` judges against a baseline (docs/ci.md)."
    )

    _name: str = "study"
    _file: str | None = None

    @property
    def name(self) -> str:
        """Return the name of its file without the suffix."""
        return self._name

    @property
    def file(self) -> str | None:
        """Return the absolute path of its file, None if it was not read from one."""
        return self._file

    @property
    def models(self) -> dict[str, paper.Model]:
        """Return the paper's model rows, their further seeds in this study, and its own baselines.

        A baseline is any other name in `checkpoints`.
        """
        further = [name for row, count in self.seeds.items() for name in seeds_of(row, count)]
        rows = with_seeds(paper.models(), [*further, *self.run])
        return rows | {name: paper.Model(preset="checkpoint") for name in self.checkpoints if name not in rows}

    @field_validator("schema_version", mode="before")
    @classmethod
    def a_number(cls, value):
        """Return the version. Raises ValueError for true and 1.0, which in Python equal 1."""
        if isinstance(value, bool | float):
            raise ValueError(f"{SCHEMA} is allowed, not {value}")
        return value

    @field_validator("run", "quantize", mode="before")
    @classmethod
    def lists_to_tuples(cls, value):
        """Return a tuple for each of YAML's lists. Raises ValueError for other values but all."""
        if not isinstance(value, dict):
            return value
        for key, item in value.items():
            if item != "all" and not (isinstance(item, list | tuple) and all(isinstance(task, str) for task in item)):
                raise ValueError(f"{shown(key)}: all or a list of tasks is allowed, not {shown(item)}")
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}

    @field_validator("expect", mode="before")
    @classmethod
    def expectations(cls, value):
        """Return a tuple for YAML's list."""
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def conditions_come_first(self):
        """Refuse a `void_unless` that names no earlier expectation."""
        earlier = []
        for item in self.expect:
            if item.void_unless is not None and item.void_unless not in earlier:
                raise ValueError(f"expect: void_unless {shown(item.void_unless)}: no earlier expectation has this what")
            earlier.append(item.what)
        return self

    @model_validator(mode="after")
    def known_names(self):
        """Refuse models and tasks that do not exist or do not go together."""
        models, rows = self.models, paper.models()
        timed = [name for name in rows if name != BAG]
        for model in [name for name in self.checkpoints if name not in rows]:
            if model not in self.run:  # or a mistyped row's name would be a new baseline
                names = allowed(timed, model)
                raise ValueError(f"checkpoints: unknown model {shown(model)}; {names}, or a baseline, which run must name too")
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", model):
                raise ValueError(
                    f"checkpoints: {shown(model)}: a baseline's name has at most 64 lower-case letters, digits, '.' and '-'"
                )
        if BAG in self.checkpoints:
            raise ValueError(f"checkpoints: {BAG} is never pre-trained, so it has no checkpoint")
        for key, table in (("run", self.run), ("quantize", self.quantize)):
            for model, tasks in table.items():
                if model not in models:
                    raise ValueError(f"{key}: unknown model {shown(model)}; {allowed(models, model)}")
                known = QUANTIZED_TASKS if key == "quantize" else WITHOUT_ORDER if model == BAG else TASK_NAMES
                for task in () if tasks == "all" else tasks:
                    if task not in known:
                        raise ValueError(f"{key}.{model}: unknown task {shown(task)}; {allowed(known)}")
        if self.quantize.get(BAG):
            raise ValueError(f"quantize.{BAG}: a bag of embeddings is not quantized; [] is allowed")
        for row in self.seeds:
            if row not in rows or row in self.checkpoints or row == BAG:
                names = allowed([name for name in timed if name not in self.checkpoints], row)
                raise ValueError(f"seeds: {shown(row)} is no row that this study pre-trains; {names}")
        shapes = [*timed, *(name for name in presets.names() if name not in models)]
        for model in self.latency.models:
            if model not in shapes:
                kind = "no shape is known of the baseline" if model in self.checkpoints else "unknown model"
                raise ValueError(f"latency.models: {kind} {shown(model)}; {allowed(shapes, model)}")
        return self

    @model_validator(mode="after")
    def temperature_is_released(self):
        """Refuse a temperature with the paper's recipe, which has none."""
        if self.distill.temperature != 1 and self.recipe == "paper":
            raise ValueError(f"distill.temperature: {self.distill.temperature} is not 1; only recipe: released has a temperature")
        return self

    @model_validator(mode="after")
    def graphs_need_a_gpu(self):
        """Refuse CUDA graphs on a CPU."""
        for name in ("pretrain", "search", "transfer", "distill"):
            if getattr(self, name).graph and self.device == "cpu":
                raise ValueError(f"{name}.graph: true needs device: cuda; with device: cpu set it to false")
        return self

    def labels(self, stage: str) -> list[str]:
        """Return why no result is judged: generated data, a smaller scale or another vocabulary."""
        found = ["synthetic: generated data"] if self.data.source == "synthetic" and stage != "latency" else []
        if self.scale.scaled:
            found.append(f"scaled: widths / {self.scale.width_divisor}, layers / {self.scale.layer_divisor}")
        elif stage != "latency":
            found += changed("scale", self.scale.model_dump(), Scale().model_dump(), frozenset())
        if stage != "latency" and self.data.source != "synthetic" and self.data.vocab_size not in (None, 30_522):
            found.append(f"scaled: a vocabulary of {self.data.vocab_size:,}")
        return found

    def schedule_labels(self, name: str, steps: int | None = None) -> list[str]:
        """Return the label of a schedule: pretrain, search, transfer or distill.

        It says that the schedule has a time budget, or else that it sees fewer tokens than the
        paper's, or else what it changes. steps: taken in place of the schedule's.
        """
        mine, full = getattr(self, name), type(self).model_fields[name].default
        if mine.max_minutes:
            return [
                f"budget: {name} ends after {mine.max_minutes:g} minutes; continued after a kill it is not the same to the bit"
            ]
        share = (steps or mine.steps) * mine.batch_size * mine.length / (full.steps * full.batch_size * full.length)
        if share < 1:
            return [f"scaled: {name} sees {share:.1e} of the paper's tokens"]
        return changed(name, mine.model_dump(), full.model_dump(), EXECUTION)

    @model_validator(mode="after")
    def lengths_fit(self):
        """Refuse sequences longer than the models' positions, and strides that skip tokens."""
        longest = self.scale.max_position_embeddings or 512
        lengths = {
            f"{name}.length": getattr(self, name).length for name in ("pretrain", "search", "transfer", "distill", "latency")
        }
        for task in TASK_NAMES:
            setting = self.finetune.setting(task)
            lengths[f"finetune.tasks.{task}.length"] = setting["length"]
            room = setting["length"] - setting.get("max_query_length", 0) - 3
            if task.startswith("squad") and setting["doc_stride"] > room:
                raise ValueError(
                    f"finetune.doc_stride: {setting['doc_stride']} is more than the {room} context tokens of a window "
                    f"of {task}, length {setting['length']} less max_query_length {setting['max_query_length']} less 3"
                )
        for key, length in lengths.items():
            if length > longest:
                raise ValueError(f"{key}: {length} is more than the model's {longest} positions")
        return self

    def run_of(self, model: str) -> Tasks | None:
        """Return what `run` says of a model, or of its row. Return None if it says nothing."""
        return self._entry(self.run, model)

    def _entry(self, table: dict[str, Tasks], model: str) -> Tasks | None:
        own, row = table.get(model), row_of(model)
        return table.get(row) if own is None and model in seeds_of(row, self.seeds.get(row, 1)) else own

    def tasks_of(self, model: str) -> tuple[str, ...]:
        """Return the tasks that `run` fine-tunes a model on."""
        tasks = self.run_of(model) or ()
        return (WITHOUT_ORDER if model == BAG else TASK_NAMES) if tasks == "all" else tasks

    def quantized_tasks_of(self, model: str) -> tuple[str, ...]:
        """Return the tasks that `quantize` names for a model."""
        tasks = self._entry(self.quantize, model) or ()
        return QUANTIZED_TASKS if tasks == "all" else tasks
