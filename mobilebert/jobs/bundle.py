"""Carry a study's finished records, models and saved states to another machine in one file.

A bundle is a tar file. Its first member, `bundle.json`, names the study and the sha256 of every
other member: `<stage>/<name>/...` of a finished job, `.state/...` of one that was killed. Caches,
locks, logs and MLflow's store stay behind; the other machine makes its own.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from mobilebert.jobs import locks
from mobilebert.jobs.record import read_record
from mobilebert.study.schema import NAME
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256, settle

MANIFEST = "bundle.json"
LARGEST_MANIFEST = 64 * 2**20  # bytes; about 500,000 files
STATES = ".state"


def write_bundle(results: Path, study: str, out: Path) -> str:
    """Write the bundle of `results/<study>`; return a line that says what it holds.

    Raises UserError if a program works in the folder, a record is damaged or edited, or there is
    nothing to carry.
    """
    folder = results / study
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run the study first")
    if out.exists():
        raise UserError(f"{out}: exists; name a new file")
    with locks.lock(folder / ".lock", f"{folder}: in use by a live run; bundle it when the run has ended"):
        jobs, states = _finished(folder), _states(folder)
        if not jobs and not states:
            raise UserError(f"{folder}: neither a finished record nor a saved state to bundle")
        files = [path for place in (*jobs, *states) for path in sorted(place.rglob("*")) if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path for path in files}
        manifest = {"study": study, "files": {name: file_sha256(path) for name, path in names.items()}}
        part = out.with_name(f".{out.name}.part")
        try:
            with tarfile.open(part, "w") as tar:
                content = json.dumps(manifest, indent=1).encode()
                member = tarfile.TarInfo(MANIFEST)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                for name, path in names.items():
                    tar.add(path, name, recursive=False)
            settle(part, out)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    size = sum(path.stat().st_size for path in files) / 2**20
    return f"{out}: {len(jobs)} finished records and {len(states)} saved states of {study}, {size:.1f} MiB"


def _finished(folder: Path) -> list[Path]:
    """Return the folders of finished jobs; the views are written again from their records."""
    found = []
    for file in sorted(folder.rglob("result.json")):
        place = file.parent.relative_to(folder)
        if place.parts[0].startswith(".") or place.parts[0] in (*VIEWS, "mlartifacts"):
            continue
        if read_record(file).seal == "edited":
            raise UserError(f"{file}: edited by hand; run its job again before you bundle the study")
        found.append(file.parent)
    return found


def _states(folder: Path) -> list[Path]:
    """Return the folders of saved states."""
    return sorted(path for path in (folder / STATES).glob("*") if path.is_dir())


def read_bundle(bundle: Path, results: Path) -> str:
    """Put a bundle's jobs into `results/<study>`; return a line with what came and what stayed.

    A job or state that is here already stays as it is. All hashes are checked before the first
    folder moves into place. Raises UserError if the file is not a whole bundle.
    """
    try:
        with tarfile.open(bundle, "r:") as tar:
            manifest = _manifest(bundle, tar)
            folder = results / manifest["study"]
            with locks.lock(folder / ".lock", f"{folder}: in use by a live run; import when the run has ended"):
                inbox = folder / ".import"
                shutil.rmtree(inbox, ignore_errors=True)
                try:
                    _unpack(bundle, tar, manifest["files"], inbox)
                    came, stayed = _move(inbox, folder)
                finally:
                    shutil.rmtree(inbox, ignore_errors=True)
    except tarfile.TarError as error:
        raise UserError(f"{bundle}: not a whole tar file: {error}") from None
    except OSError as error:
        raise UserError(f"{bundle}: cannot be imported: {error.filename or bundle}: {error.strerror or error}") from None
    return f"{folder}: {came} jobs and saved states imported, {stayed} were here already"


def _manifest(bundle: Path, tar: tarfile.TarFile) -> dict:
    """Return the manifest. Raises UserError if there is none or it is not one of ours."""
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > LARGEST_MANIFEST:
        raise UserError(f"{bundle}: not a bundle: its first member must be {MANIFEST}; `mobilebert bundle` writes one")
    try:
        found = json.loads(_content(tar, first).read())
        study, files = found["study"], found["files"]
        fits = isinstance(study, str) and all(isinstance(key, str) and isinstance(value, str) for key, value in files.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fits, study, files = False, "", {}
    if not fits or not NAME.fullmatch(study):
        raise UserError(f"{bundle}: {MANIFEST} is damaged; bundle the study again")
    if unsafe := next((name for name in files if not _is_safe(name)), None):
        raise UserError(f"{bundle}: {MANIFEST} names {unsafe!r}, which lies outside the study's jobs")
    return {"study": study, "files": files}


def _is_safe(name: str) -> bool:
    """Return whether a member stays inside the folder of a job or of a saved state."""
    parts = PurePosixPath(name).parts
    plain = "\0" not in name and name == "/".join(parts) and not {"..", "/"} & {*parts}
    return plain and len(parts) > 1 and (name.startswith(f"{STATES}/") or not name.startswith("."))


def _unpack(bundle: Path, tar: tarfile.TarFile, hashes: dict[str, str], inbox: Path) -> None:
    """Write every member below `inbox` and compare its hash. Raises UserError at a fault."""
    missing = dict(hashes)
    while member := tar.next():
        if not member.isfile() or member.name not in missing:
            raise UserError(f"{bundle}: {member.name!r} is not in {MANIFEST}, or not a plain file")
        path = inbox / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            shutil.copyfileobj(_content(tar, member), stream, 2**20)
        if file_sha256(path) != missing.pop(member.name):
            raise UserError(f"{bundle}: {member.name} is damaged: its content does not fit its hash; copy the bundle again")
    if missing:
        raise UserError(f"{bundle}: {next(iter(missing))} is missing; copy the bundle again")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Return the stream of a plain file's content."""
    stream = tar.extractfile(member)
    if stream is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return stream


def _places(inbox: Path) -> Iterator[Path]:
    """Yield the folders of jobs and saved states that a bundle brought."""
    yield from _finished(inbox)
    yield from _states(inbox)


def _move(inbox: Path, folder: Path) -> tuple[int, int]:
    """Move what is not here yet into place; return how many folders came, and how many stayed.

    A folder without a record, left by a killed job, gives way. Raises UserError, before anything
    moves, if that folder holds records of other jobs.
    """
    places = list(_places(inbox))
    for place in places:
        target = folder / place.relative_to(inbox)
        if not (target / "result.json").exists() and next(target.rglob("result.json"), None):
            raise UserError(f"{target}: holds records of several jobs; the bundle would replace them by one job")
    came = stayed = 0
    for place in places:
        target = folder / place.relative_to(inbox)
        is_state = place.parent.name == STATES
        if target.is_dir() if is_state else (target / "result.json").exists():
            stayed += 1
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        place.rename(target)
        came += 1
    return came, stayed
