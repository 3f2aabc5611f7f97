"""What is looked at before any work starts: is the study's data there, and is it the data that the study was written for?"""

from __future__ import annotations

from pathlib import Path

from mobilebert.config import Study
from mobilebert.errors import UserError
from mobilebert.records import sha256


def check(study: Study, prepared: bool) -> None:
    """Raises UserError for a local folder that is missing, not the one meant, lacks a file or has a wrong one.

    `prepared`: the data stage has read it already.
    """
    kind, _, path = study.data.source.partition(":")
    if kind != "local" or prepared:
        return
    from mobilebert.data.reading import reading
    from mobilebert.data.sources import open_source

    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{study.name}: data.source: no folder {path}")
    source = open_source(study.data.source)
    with reading(folder / "SHA256SUMS"):
        found = sha256(folder / "SHA256SUMS")
    if found != study.data.sums:
        raise UserError(f"{study.name}: data.sums: {folder / 'SHA256SUMS'} has sha256 {found}, the study names {study.data.sums}")
    from mobilebert.data.glue import TASKS

    source.vocab()
    source.files("corpus")
    fine_tuned = {task for model in study.run for task in study.tasks_of(model)}
    for name, task in TASKS.items():
        needed = {"train", "validation"} if name in fine_tuned else {"validation"} if task.is_squad else set()
        there = source.splits(name)
        if missing := {task.splits[role] for role in needed} - set(there):
            raise UserError(f"{folder}: no {task.folder}/{min(missing)}.parquet, which the study {study.name} needs")
        for split in there:
            source.table(name, split)
