"""The paper as data: how every model row is made (models.yaml) and every table's rows, columns and published cells.

One table file drives what the DAG runs for `snakemake table_N`, the verdict and the printed table.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1  # of models.yaml and table_N.yaml
FOLDER = Path(__file__).parent
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there: every command reads these ten files


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Strict):
    """How one row's model comes to be."""

    preset: str  # presets/<preset>.json, "bag-of-embeddings", or "checkpoint": a study's own baseline
    overrides: dict[str, int | float | str | bool] = {}  # architecture fields that differ from the preset
    schedule: Literal["pretrain", "search"] = "pretrain"  # of a model without a teacher
    teacher: str | None = None
    strategy: Literal["none", "akt", "jkt", "pkt"] = "none"  # knowledge transfer, paper section 3.5
    losses: tuple[Literal["fmt", "at"], ...] = ()  # layer-wise losses of the transfer
    dropout: bool = True  # in pre-training; the students have none, there as in distillation (released code)
    control: Literal["none", "fresh-student", "shuffled-teacher"] = "none"
    budget_of: str | None = None  # a model without a teacher, trained with the settings of this student's distillation
    budget: Literal["steps", "compute"] = "steps"  # for as many steps as the student, or as many FLOPs as it and its teacher
    seed: int = 0  # added to the study's
    note: str = ""

    @property
    def settings(self) -> str:
        """The group of a study's keys that says how a model without a teacher is trained."""
        return "distill" if self.budget_of else self.schedule


class Column(Strict):
    """Where a column's measured value comes from.

    architecture: computed from the paper's own widths, whatever the study's scale; cost: from the model that was run;
    finetune: `finetune/<model>/<task>` (`quantize/<model>/<task>` in an int8 row); latency: the `latency` record;
    glue: the leaderboard formula over the row's own cells; text: nothing to measure.
    """

    key: str
    head: str
    source: Literal["architecture", "cost", "finetune", "latency", "glue", "text"]
    unit: str = ""  # %, M, G, ms or nothing
    task: str | None = None
    metric: str | None = None
    published_split: str = ""  # "dev" or "test server"
    tolerance: float | None = None  # in the column's unit, two-sided; None: no verdict on the published value
    relative: bool = False  # the tolerance is a share of the published value


class Row(Strict):
    label: str
    model: str | None = None  # None: published only, this suite does not run it
    precision: Literal["fp32", "int8"] = "fp32"
    marks: str = ""
    published: dict[str, float | str | list | None] = {}


class Table(Strict):
    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    number: Annotated[int, Field(ge=1, le=9)]
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@cache
def models() -> dict[str, Model]:
    content = yaml.load((FOLDER / "models.yaml").read_text(encoding="utf-8"), LOADER)
    return {name: Model.model_validate(fields) for name, fields in content["models"].items()}


@cache
def table(number: int) -> Table:
    """Table `number` of the paper, 1 to 9."""
    return Table.model_validate(yaml.load((FOLDER / f"table_{number}.yaml").read_text(encoding="utf-8"), LOADER))


def tables() -> list[Table]:
    return [table(number) for number in range(1, 10)]
