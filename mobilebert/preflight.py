"""What is looked at before any work starts: is the study's data there, and is it the data that the study was written for?"""

from __future__ import annotations

from pathlib import Path

from mobilebert.config import Study
from mobilebert.errors import UserError
from mobilebert.records import sha256


def check(study: Study, prepared: bool) -> None:
    """Raises UserError for a local folder that is missing, not the one meant, or has a wrong file. `prepared`: read already."""
    kind, _, path = study.data.source.partition(":")
    if kind != "local" or prepared:
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{study.name}: data.source: no folder {path}")
    if not (folder / "SHA256SUMS").is_file():
        raise UserError(f"{study.name}: data.source: no SHA256SUMS in {path}")
    found = sha256(folder / "SHA256SUMS")
    if study.data.sums and found != study.data.sums:
        raise UserError(f"{study.name}: data.sums: {folder / 'SHA256SUMS'} has sha256 {found}, the study names {study.data.sums}")
    from mobilebert.data.glue import TASKS
    from mobilebert.data.sources import open_source

    source = open_source(study.data.source)
    for task in TASKS:
        for split in source.splits(task):
            source.table(task, split)
