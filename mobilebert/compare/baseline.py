"""Freeze the runs of a study in one file, to which later runs are compared."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobilebert.compare.side import Facts, Side
from mobilebert.jobs.record import checksum, sealed
from mobilebert.study.load import first_problem
from mobilebert.study.sections import Gate
from mobilebert.util.errors import UserError
from mobilebert.util.files import write_atomically

SCHEMA = 1
_SHORT_LIST = re.compile(r"\[\n\s+[^\[\]{}]*\]")  # a list of plain values, which one line holds


class Change(BaseModel):
    """An accepted change of a baseline. made: the day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: str
    reason: str


class Baseline(BaseModel):
    """A study's runs, as a file that a change in review shows line by line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    study: str
    gate: Gate
    history: tuple[Change, ...]
    seeds: tuple[str, ...]
    jobs: dict[str, Facts]
    checksum: str | None = None

    def side(self, name: str) -> Side:
        """Return the frozen runs as a side."""
        return Side(name, self.seeds, self.jobs)


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in a file. Raises UserError if it is none, or was edited by hand."""
    try:
        content = json.loads(path.read_bytes())
        found = Baseline.model_validate(content)
        is_intact = found.checksum == checksum(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a baseline of schema {SCHEMA}: {first_problem(error, Baseline)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not is_intact:
        raise UserError(
            f"{path}: edited by hand; restore it (git checkout {path}), "
            f"or delete it and make it again: mobilebert baseline {path} --study {found.study}"
        )
    return found


def write_baseline(path: Path, study: str, gate: Gate, side: Side, history: Sequence[Change]) -> None:
    """Write a baseline, with the values of all runs of a metric on one line."""
    made = Baseline(schema=1, study=study, gate=gate, history=tuple(history), seeds=side.seeds, jobs=dict(side.jobs))
    content = sealed(made.model_dump(mode="json", by_alias=True, exclude={"checksum"}))
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    short = _SHORT_LIST.sub(lambda match: re.sub(r"\n\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"), text)
    write_atomically(path, f"{short}\n".encode())
