"""Read the paper as data: model rows (models.yaml), each table's columns, rows and published cells.

A table's file decides what `snakemake table_N` runs, the verdicts and the printed table.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1  # of models.yaml and table_N.yaml
FOLDER = Path(__file__).parent
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's if it is installed: every command reads these ten files


class Strict(BaseModel):
    """A frozen model without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """How the model of a row is built and trained."""

    preset: str  # presets/<preset>.json, "bag-of-embeddings", or "checkpoint": a study's own baseline
    overrides: dict[str, int | float | str | bool] = {}  # architecture fields that differ from the preset
    schedule: Literal["pretrain", "search"] = "pretrain"  # of a model without a teacher
    teacher: str | None = None
    strategy: Literal["none", "akt", "jkt", "pkt"] = "none"  # knowledge transfer, paper section 3.5
    losses: tuple[Literal["fmt", "at"], ...] = ()  # layer-wise losses of the transfer
    dropout: bool = True  # in pre-training; the students have none there and in distillation (released code)
    control: Literal["none", "fresh-student", "shuffled-teacher"] = "none"
    budget_of: str | None = None  # student whose steps this model takes; without a teacher also its settings
    budget: Literal["steps", "compute"] = "steps"  # for as many steps as the student, or as many FLOPs as it and its teacher
    untrained: bool = False  # with budget_of: one step in place of the student's
    seed: int = 0  # added to the study's
    note: str = ""

    @property
    def settings(self) -> str:
        """Return the section of a study that says how a model without a teacher is trained."""
        return "distill" if self.budget_of else self.schedule


class Column(Strict):
    """A column, with the source of its measured values.

    architecture: computed from the paper's widths, whatever the study's scale.
    cost: computed from the model at the study's scale.
    finetune: `finetune/<model>/<task>` (`quantize/<model>/<task>` in an int8 row).
    latency: the `latency` record; the metric is p50_ms, or speed_up: how many times faster the row
        is than the row of the model `over`, on the same engine.
    glue: the leaderboard's formula over the row's cells. text: nothing to measure.
    """

    key: str
    head: str
    source: Literal["architecture", "cost", "finetune", "latency", "glue", "text"]
    unit: str = ""  # %, M, G, ms, x or nothing
    task: str | None = None
    metric: str | None = None
    over: str | None = None  # model of the row that a speed-up is relative to
    engine: str | None = None  # of a latency; None: the record's first
    published_split: str = ""  # "dev" or "test server"
    tolerance: float | None = None  # in the column's unit, two-sided; None: no verdict on the published value
    relative: bool = False  # the tolerance is a share of the published value


class Row(Strict):
    """A row: its label, its model and its published values by column key."""

    label: str
    model: str | None = None  # a row without a model is only published; this suite does not run it
    precision: Literal["fp32", "int8"] = "fp32"
    marks: str = ""
    published: dict[str, float | str | list | None] = {}


class Table(Strict):
    """One of the paper's tables."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    number: Annotated[int, Field(ge=1, le=9)]
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@cache
def models() -> dict[str, Model]:
    """Return name -> model of every model row."""
    content = yaml.load((FOLDER / "models.yaml").read_text(encoding="utf-8"), LOADER)
    return {name: Model.model_validate(fields) for name, fields in content["models"].items()}


@cache
def table(number: int) -> Table:
    """Return table `number` of the paper, 1 to 9."""
    return Table.model_validate(yaml.load((FOLDER / f"table_{number}.yaml").read_text(encoding="utf-8"), LOADER))


def tables() -> list[Table]:
    """Return Tables 1 to 9."""
    return [table(number) for number in range(1, 10)]
