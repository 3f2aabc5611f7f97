"""Read all records of a folder: a study's results, or records that were committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobilebert.jobs.record import Record, read_record
from mobilebert.study.load import load_study
from mobilebert.study.schema import Study
from mobilebert.study.stages import STAGES
from mobilebert.util.errors import UserError, allowed


@dataclass(frozen=True)
class RecordFolder:
    """The records of a folder, without those of views.

    records: job id -> record, in the order of the stages.
    edited: ids of records that were changed after they were written; `records` lacks them.
    damaged: file -> problem of every result.json that is no record.
    """

    records: Mapping[str, Record]
    edited: tuple[str, ...]
    damaged: Mapping[Path, str]


def read_folder(folder: Path) -> RecordFolder:
    """Return the records below a folder, whatever code made them. Raises UserError without one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    records, edited, damaged = {}, [], {}
    for stage in (stage.name for stage in STAGES.values() if not stage.is_view):
        for path in sorted((folder / stage).rglob("result.json")):
            try:
                record = read_record(path)
                if record.id != path.parent.relative_to(folder).as_posix():
                    raise UserError(f"a record of {record.id}")
            except UserError as error:
                damaged[path] = str(error).removeprefix(f"{path}: ")
                continue
            if record.seal == "edited":
                edited.append(record.id)
            else:
                records[record.id] = record
    return RecordFolder(records, tuple(edited), damaged)


def study_of(found: RecordFolder, folder: Path, name: str | None = None) -> Study:
    """Return the named study, or the one that made the records; smoke if there is no record.

    Raises UserError if the records name several studies and `name` is None.
    """
    names = {record.study for record in found.records.values()} or {"smoke"}
    if name is None and len(names) > 1:
        raise UserError(f"{folder}: its records are of several studies; name one: --study; {allowed(sorted(names))}")
    return load_study(name or names.pop())
