"""Define a study: its sections and what must hold between them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mobilebert import paper
from mobilebert.study.recipe import EXECUTION, TASK_NAMES, Distill, Finetune, Pretrain, Search, Strict, Transfer, changed
from mobilebert.study.sections import Checkpoint, Data, Expectation, Latency, Scale, Seed
from mobilebert.util.errors import allowed, shown

SCHEMA = 1  # of a study file: raised when a key changes its meaning, never when one is added

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a study: a folder, a part of a shell's line and of a URL

BAG = "bag-of-embeddings"

WITHOUT_ORDER = tuple(task for task in TASK_NAMES if not task.startswith("squad"))  # a bag has no order, so no span

QUANTIZED_TASKS = ("mnli", "qnli", "mrpc", "sst2", "squad_v1.1")  # the columns of Table 6


class Study(Strict):
    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    description: str
    recipe: Literal["paper", "released"] = "paper"
    seed: Seed = 0
    device: Literal["cpu", "cuda"] = "cuda"
    data: Data = Data()
    scale: Scale = Scale()
    pretrain: Pretrain = Pretrain()
    search: Search = Search()
    transfer: Transfer = Transfer()
    distill: Distill = Distill()
    finetune: Finetune = Finetune()
    latency: Latency = Latency()
    checkpoints: dict[str, Checkpoint] = Field({})  # model, or a baseline of any name -> weights in place of pre-training
    run: dict[str, Literal["all"] | tuple[str, ...]] = Field({"mobilebert": "all"})  # model -> tasks it is fine-tuned on
    quantize: dict[str, Literal["all"] | tuple[str, ...]] = Field({"mobilebert": "all"})
    expect: tuple[Expectation, ...] = ()

    _name: str = "study"
    _file: str | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def file(self) -> str | None:
        """The absolute path that it was loaded from."""
        return self._file

    @property
    def models(self) -> dict[str, paper.Model]:
        """The paper's model rows, and a baseline for every further name among the checkpoints."""
        rows = paper.models()
        return rows | {name: paper.Model(preset="checkpoint") for name in self.checkpoints if name not in rows}

    @field_validator("schema_version", mode="before")
    @classmethod
    def a_number(cls, value):
        if isinstance(value, bool | float):  # which Python takes for equal to 1
            raise ValueError(f"{SCHEMA} is allowed, not {value}")
        return value

    @field_validator("run", "quantize", mode="before")
    @classmethod
    def lists_to_tuples(cls, value):
        if not isinstance(value, dict):
            return value
        for key, item in value.items():
            if item != "all" and not (isinstance(item, list | tuple) and all(isinstance(task, str) for task in item)):
                raise ValueError(f"{shown(key)}: all or a list of tasks is allowed, not {shown(item)}")
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}

    @field_validator("expect", mode="before")
    @classmethod
    def expectations(cls, value):
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def conditions_come_first(self):
        earlier = []
        for item in self.expect:
            if item.void_unless is not None and item.void_unless not in earlier:
                raise ValueError(f"expect: void_unless {shown(item.void_unless)} is no earlier expectation's what")
            earlier.append(item.what)
        return self

    @model_validator(mode="after")
    def known_names(self):
        models, rows = self.models, paper.models()
        timed = [name for name in rows if name != BAG]
        for model in [name for name in models if name not in rows]:
            if model not in self.run:  # so that a paper row's name, mistyped, is no new baseline
                names = allowed(timed, model)
                raise ValueError(f"checkpoints: unknown model {shown(model)}; {names}, or a baseline that run names too")
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
        for model in self.latency.models:
            if model not in timed:
                raise ValueError(f"latency.models: unknown model {shown(model)}; {allowed(timed, model)}")
        return self

    @model_validator(mode="after")
    def temperature_is_released(self):
        if self.distill.temperature != 1 and self.recipe == "paper":
            raise ValueError(f"distill.temperature: {self.distill.temperature} is not 1; recipe released alone has a temperature")
        return self

    @model_validator(mode="after")
    def graphs_need_a_gpu(self):
        for name in ("pretrain", "search", "transfer", "distill"):
            if getattr(self, name).graph and self.device == "cpu":
                raise ValueError(f"{name}.graph: true needs device: cuda; with device: cpu false is allowed")
        return self

    def labels(self, stage: str) -> list[str]:
        """Return why no result of this study stands beside the paper's: generated data, a smaller scale."""
        found = ["synthetic: generated data"] if self.data.source == "synthetic" and stage != "latency" else []
        if self.scale.scaled:
            found.append(f"scaled: widths / {self.scale.width_divisor}, layers / {self.scale.layer_divisor}")
        elif stage != "latency":
            found += changed("scale", self.scale.model_dump(), Scale().model_dump(), frozenset())
        return found

    def schedule_labels(self, name: str, steps: int | None = None) -> list[str]:
        """Whether a schedule (pretrain, search, transfer or distill) has a time budget or sees fewer tokens than the paper's; in
        `steps`, if given. Of one that does neither, what else it changes."""
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

    def tasks_of(self, model: str) -> tuple[str, ...]:
        tasks = self.run.get(model, ())
        return (WITHOUT_ORDER if model == BAG else TASK_NAMES) if tasks == "all" else tasks

    def quantized_tasks_of(self, model: str) -> tuple[str, ...]:
        tasks = self.quantize.get(model, ())
        return QUANTIZED_TASKS if tasks == "all" else tasks
