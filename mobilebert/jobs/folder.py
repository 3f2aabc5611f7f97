"""Read all records of a folder: a study's results, or records that were committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobilebert.jobs.record import Record, read_record
from mobilebert.study.load import load_study
from mobilebert.study.schema import Study
from mobilebert.study.stages import STAGES
from mobilebert.util.errors import UserError


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

    @property
    def study(self) -> str | None:
        """Return the study that the records name; None if they name none, or several."""
        names = {record.study for record in self.records.values()}
        return names.pop() if len(names) == 1 else None


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


def study_of(found: RecordFolder, folder: object) -> Study:
    """Return the study that made the records. Raises UserError if they do not name a known one."""
    if found.study is None:
        raise UserError(f"{folder}: its records name no study, or several; name one: --study")
    return load_study(found.study)
