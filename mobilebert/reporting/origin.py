"""Say where a cell comes from: its records, their files, and the command that makes it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mobilebert.evaluation.glue import LEADERBOARD
from mobilebert.paper import Column
from mobilebert.reporting.cell import Cell
from mobilebert.reporting.tables import FilledRow
from mobilebert.study.graph import cell_job


@dataclass(frozen=True)
class Origin:
    """The ids of the records behind a cell, and its command; a cell without a value has neither."""

    records: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Place:
    """Links of a page to a record's file and to its log. log: None if none was kept."""

    record: str
    log: str | None


def origin(row: FilledRow, column: Column, cell: Cell, table: int, study: str) -> Origin:
    """Return the origin of one cell of table number `table`."""
    if row.row.model is None or cell.verdict is None:
        return Origin()
    if column.source in ("architecture", "cost"):
        return Origin(command=f"mobilebert describe {shlex.quote(row.row.model)}")
    if column.source == "glue":
        records = tuple(f"finetune/{row.row.model}/{task}" for task in LEADERBOARD)
        return Origin(records, f"snakemake --cores 1 table_{table} --config {shlex.quote(f'study={study}')}")
    record = cell_job(row.row, column)
    return Origin((record,), command_of(record, study)) if record else Origin()


def command_of(record: str, study: str) -> str:
    """Return the command that makes a record."""
    words = ("snakemake", "--cores", "1", f"results/{study}/{record}/result.json", "--config", f"study={study}")
    return shlex.join(words)


def places(folders: Mapping[str, Path], logs: Path, page: Path) -> dict[str, Place]:
    """Return the place of each record for a page that lies in the folder `page`.

    folders: record id -> folder of its result.json. logs: folder of the logs, which may be missing.
    """
    found = {}
    for key, folder in folders.items():
        log = logs / f"{key}.log"
        found[key] = Place(_link(folder / "result.json", page), _link(log, page) if log.is_file() else None)
    return found


def _link(file: Path, page: Path) -> str:
    """Return a relative link; its "./" keeps a name with a colon from being read as a scheme."""
    path = Path(os.path.relpath(file.resolve(), page.resolve())).as_posix()
    return quote(path if path.startswith("../") else f"./{path}")
