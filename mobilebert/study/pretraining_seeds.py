"""Name the models of one row that differ in their pre-training seed alone.

Seed 0 has the row's name, seed 2 of the row `scratch` is the model `scratch-seed-2`. The number is
added to the study's seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mobilebert.paper import Model

NAME = re.compile(r"(.+)-seed-([1-9]\d{0,2})")


def row_of(model: str) -> str:
    """Return the row of a model's name."""
    found = NAME.fullmatch(model)
    return found[1] if found else model


def seeds_of(row: str, count: int) -> list[str]:
    """Return the names of the models of a row with `count` seeds, seed 0 first."""
    return [row, *(f"{row}-seed-{number}" for number in range(1, count))]


def with_seeds(rows: Mapping[str, Model], names: Iterable[str]) -> dict[str, Model]:
    """Return the rows, and a model for each of the names that is a further seed of a row."""
    found = dict(rows)
    for name in names:
        parts = NAME.fullmatch(name)
        if parts and parts[1] in rows and name not in rows:
            found[name] = rows[parts[1]].model_copy(update={"seed": int(parts[2])})
    return found
