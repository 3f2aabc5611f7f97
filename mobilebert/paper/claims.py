"""Read the paper's claims as data (claims.yaml): what each compares, its margin and what voids it.

The file is written before the first run that it judges.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from mobilebert.paper import FOLDER, LOADER, Strict, models

MOST_PRIMARY = 8  # primary claims share one correction; among more of them fewer could be told

Kind = Literal["size", "speed", "pretraining", "order", "contrast", "no loss", "score"]
Void = Literal["teacher unread", "teacher behind", "failed run", "disturbed timing"]
OF_LOSSES = ("pretraining", "order", "contrast")  # kinds that compare held-out masked-LM losses
UNITS = {"size": "x", "speed": "x", "no loss": "points", "score": "points", **dict.fromkeys(OF_LOSSES, "nat")}


class Link(Strict):
    """One comparison: `better` is said to be better than `than`.

    Each side is a row, a row with ":int8", or a row and the row that it improves on (a gain). A
    size names presets in place of rows. Without `than` the row is compared with the printed figure.
    """

    better: tuple[str, ...]
    than: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Link:
        sides = [self.better] if self.than is None else [self.better, self.than]
        if not all(1 <= len(side) <= 2 for side in sides) or len({len(side) for side in sides}) > 1:
            raise ValueError("better and than: give both one row, or both two rows")
        return self

    @property
    def rows(self) -> tuple[str, ...]:
        """Return the rows that the link names, each once, without their precision."""
        sides = (*self.better, *(self.than or ()))
        return tuple(dict.fromkeys(side.partition(":")[0] for side in sides))


class Claim(Strict):
    """A sentence of the paper that a study can test.

    standing: a primary claim has a verdict under Holm's correction, an exploratory one only an
        interval; an exact one compares printed digits and needs no correction.
    margin: in nats, percentage points or, for a speed, a fraction. The claims "helps" and "gains
        most" hold if the difference is above the margin, ">=" and "no loss" if it is above minus
        the margin, a speed and a score if they fall short of the printed value by less.
    least: how many seeds, rows or processes a verdict needs.
    same: what must be equal in all rows; else the claim is void.
    scaled: whether a run at a smaller scale may speak to the claim.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    place: str
    sentence: str
    kind: Kind
    standing: Literal["exact", "primary", "exploratory"]
    links: Annotated[tuple[Link, ...], Field(min_length=1)]
    metric: Literal["parameters", "flops"] | None = None  # of a size
    column: str | None = None  # of a score: the metric in Table 4 or 5, as task:metric, or "glue"
    tasks: tuple[str, ...] = ()  # of "no loss"
    printed: str | None = None  # the figure as the paper prints it, for a size, a speed and a score
    margin: Annotated[float, Field(ge=0)] = 0.0
    least: Annotated[int, Field(ge=1)] = 1
    void_if: tuple[Void, ...] = ()
    same: tuple[Literal["layout", "tokens"], ...] = ()
    scaled: bool

    @property
    def unit(self) -> str:
        """Return the unit of the measured figure, and of its interval and margin."""
        return "G" if self.metric == "flops" and self.links[0].than is None else UNITS[self.kind]

    @property
    def rows(self) -> tuple[str, ...]:
        """Return every row that the claim compares, each once."""
        return tuple(dict.fromkeys(row for link in self.links for row in link.rows))

    @model_validator(mode="after")
    def _check(self) -> Claim:
        needs = {
            "metric": self.kind == "size",
            "column": self.kind == "score",
            "tasks": self.kind == "no loss",
            "printed": self.kind in ("size", "speed", "score"),
        }
        for key, needed in needs.items():
            if bool(getattr(self, key)) != needed:
                raise ValueError(f"{self.id}: {key}: a claim of kind {self.kind!r} {'needs' if needed else 'has no'} {key}")
        if (self.standing == "exact") != (self.kind == "size"):
            raise ValueError(f"{self.id}: standing: exact is for sizes, and only for them")
        if self.kind != "size" and (unknown := [row for row in self.rows if row not in models()]):
            raise ValueError(f"{self.id}: links: unknown row {unknown[0]!r}")
        if any(len(link.better) == 2 for link in self.links) != (self.kind == "contrast"):
            raise ValueError(f"{self.id}: links: two rows a side are for a contrast, and only for one")
        if any(link.than is None for link in self.links) and self.kind not in ("score", "size"):
            raise ValueError(f"{self.id}: links: only a size or a score is compared with its printed figure; name `than`")
        return self


class Claims(Strict):
    """All claims, in the order in which they are shown."""

    schema_version: Literal[1] = Field(1, alias="schema")
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _check(self) -> Claims:
        twice = [name for name, count in Counter(claim.id for claim in self.claims).items() if count > 1]
        if twice:
            raise ValueError(f"two claims have the id {twice[0]}")
        if sum(claim.standing == "primary" for claim in self.claims) > MOST_PRIMARY:
            raise ValueError(f"more than {MOST_PRIMARY} claims are primary")
        return self


@cache
def claims() -> tuple[Claim, ...]:
    """Return every claim of claims.yaml."""
    return Claims.model_validate(yaml.load((FOLDER / "claims.yaml").read_text(encoding="utf-8"), LOADER)).claims
