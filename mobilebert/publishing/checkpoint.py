"""Find the trained checkpoints of a study, and the files of each that the hub takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import Record
from mobilebert.util.errors import UserError, allowed, shown
from mobilebert.util.files import file_sha256

TRAINED = ("pretrain", "transfer", "distill", "finetune")  # stages that leave a checkpoint
FOLDER = "model/"  # the names of a checkpoint's files among a record's artefacts begin so


@dataclass(frozen=True)
class Checkpoint:
    """One trained checkpoint. files: name on the hub -> file."""

    record: Record
    folder: Path
    files: Mapping[str, Path]

    @property
    def name(self) -> str:
        """Return its name on the hub: study, model, then the task or the stage."""
        stage = () if self.record.stage == "finetune" else (self.record.stage,)
        name = "-".join((self.record.study, *self.record.name.split("/"), *stage))
        return re.sub(r"([-.])[-.]+", r"\1", name)  # the hub takes neither "--" nor ".."

    def check(self) -> None:
        """Raise UserError if a file is missing or is not the one that the record names."""
        for name, known in self.record.artefacts.items():
            path = self.files.get(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else None
            if path is None:
                continue
            if not path.is_file():
                raise UserError(f"{path}: missing, though {self.record.id} has a record; run the stage again")
            if not known.get("sha256"):
                raise UserError(f"{path}: {self.record.id} has no sha256 of it; run the stage again")
            if file_sha256(path) != known["sha256"]:
                raise UserError(f"{path}: changed since {self.record.id} was recorded; run the stage again")


def checkpoints(results: Path, found: Mapping[str, Record], wanted: Iterable[str] = ()) -> list[Checkpoint]:
    """Return the checkpoints of the current records `found`; of those that `wanted` names, if any.

    Raises UserError if a wanted job has no checkpoint, if there is none at all, or if a record
    names a file outside its folder.
    """
    known = {}
    for key, record in found.items():
        names = [name for name in record.artefacts if name.startswith(FOLDER)]
        if record.stage in TRAINED and record.status == "ok" and names:
            folder = record_folder(results, record.study, record)
            files = {name.removeprefix(FOLDER): _inside(folder, name, record) for name in names}
            files["result.json"] = folder / "result.json"
            known[key] = Checkpoint(record, folder, files)
    if not known:
        raise UserError("publish: no current record has a trained checkpoint; run the study first")
    if unknown := [key for key in wanted if key not in known]:
        raise UserError(f"publish: {unknown[0]}: no trained checkpoint with a current record; {allowed(known, unknown[0])}")
    return [known[key] for key in dict.fromkeys(wanted) or known]


def _inside(folder: Path, name: str, record: Record) -> Path:
    """Return the file of an artefact. Raises UserError if its name leads out of the folder."""
    if "\0" in name or ".." in Path(name).parts or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / 'result.json'}: {record.id} names {shown(name)}, which lies outside its folder")
    return folder / name
