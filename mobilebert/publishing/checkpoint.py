"""Find the trained checkpoints of a study, and the files of each that the hub takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mobilebert.deployment.quantized_files import FILES, FIRST
from mobilebert.jobs.freshness import record_folder
from mobilebert.jobs.record import Record
from mobilebert.util.errors import UserError, allowed, shown
from mobilebert.util.files import file_sha256

TRAINED = ("pretrain", "transfer", "distill", "finetune")  # stages that leave a checkpoint
FOLDER = "model/"  # the names of a checkpoint's files among a record's artefacts begin so


@dataclass(frozen=True)
class Checkpoint:
    """One trained checkpoint. files: name on the hub -> file.

    quantized: the record of its int8 files, if there is one. int8: their name on the hub -> file.
    """

    record: Record
    folder: Path
    files: dict[str, Path]
    quantized: Record | None = None
    int8: dict[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return its name on the hub: study, model, then the task or the stage."""
        stage = () if self.record.stage == "finetune" else (self.record.stage,)
        name = "-".join((self.record.study, *self.record.name.split("/"), *stage))
        return re.sub(r"([-.])[-.]+", r"\1", name)  # the hub takes neither "--" nor ".."

    def check(self) -> None:
        """Raise UserError if a file is missing or is not the one that its record names."""
        _check(self.record, {f"{FOLDER}{name}": path for name, path in self.files.items()})
        if self.quantized:
            _check(self.quantized, {path.name: path for path in self.int8.values()})


def _check(record: Record, files: Mapping[str, Path]) -> None:
    """Raise UserError unless each artefact of the record among `files` has its hash."""
    for name, known in record.artefacts.items():
        path = files.get(name)
        if path is None:
            continue
        if not path.is_file():
            raise UserError(f"{path}: missing, though {record.id} has a record; run the stage again")
        if not known.get("sha256"):
            raise UserError(f"{path}: {record.id} has no sha256 of it; run the stage again")
        if file_sha256(path) != known["sha256"]:
            raise UserError(f"{path}: changed since {record.id} was recorded; run the stage again")


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
            quantized = _quantized(record, found)
            int8 = _int8(record_folder(results, record.study, quantized), quantized) if quantized else {}
            known[key] = Checkpoint(record, folder, files, quantized, int8)
    if not known:
        raise UserError("publish: no current record has a trained checkpoint; run the study first")
    if int8 := [key for key in wanted if known.get(_tuned(key)) and known[_tuned(key)].int8]:
        raise UserError(f"publish: {int8[0]}: its files go with the checkpoint; name {_tuned(int8[0])}")
    if unknown := [key for key in wanted if key not in known]:
        raise UserError(f"publish: {unknown[0]}: no trained checkpoint with a current record; {allowed(known, unknown[0])}")
    return [known[key] for key in dict.fromkeys(wanted) or known]


def _quantized(record: Record, found: Mapping[str, Record]) -> Record | None:
    """Return the record of a fine-tuned checkpoint's int8 files; None if there is none."""
    quantized = found.get(f"quantize/{record.name}") if record.stage == "finetune" else None
    is_its_own = quantized is not None and quantized.inputs.get(record.id) == record.fingerprint
    return quantized if is_its_own and quantized.status == "ok" else None


def _tuned(key: str) -> str:
    """Return the id of the fine-tuning whose model the job `key` quantized; "" for other jobs."""
    return key.replace("quantize/", "finetune/", 1) if key.startswith("quantize/") else ""


def hub_name(file: str) -> str:
    """Return the place of an int8 file on the hub. That of Table 6 has the hub's usual name."""
    if file == FILES[FIRST]:
        return "onnx/model_quantized.onnx"
    if file.endswith(".onnx"):
        return f"onnx/{file.removesuffix('.onnx').replace('.', '_')}_quantized.onnx"
    if file.endswith(".tflite"):
        return f"tflite/{file}"
    return f"quanto/{file}" if file.startswith("model.quanto.") else f"openvino/{file}"


def _int8(folder: Path, record: Record) -> dict[str, Path]:
    files = {hub_name(name): _inside(folder, name, record) for name in record.artefacts if name.startswith("model.")}
    return files | ({"onnx/result.json": folder / "result.json"} if files else {})


def _inside(folder: Path, name: str, record: Record) -> Path:
    """Return the file of an artefact. Raises UserError if its name leads out of the folder."""
    if "\0" in name or ".." in Path(name).parts or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / 'result.json'}: {record.id} names {shown(name)}, which lies outside its folder")
    return folder / name
