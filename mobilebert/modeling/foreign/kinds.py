"""Find out what kind of checkpoint a path holds."""

from __future__ import annotations

import re
from pathlib import Path

from mobilebert.modeling.checkpoint_config import INDEX, PICKLE, WEIGHTS, read_json
from mobilebert.modeling.foreign.hdf5 import H5, H5_INDEX
from mobilebert.modeling.weight_files import INNER_WRAPPERS, LEADING_WRAPPERS, weight_files
from mobilebert.util.errors import UserError

PICKLE_INDEX = f"{PICKLE}.index.json"


def what_is_missing(path: Path) -> str:
    if not path.exists():
        return "no such folder or file, and no .index file of a TensorFlow checkpoint with that name"
    if path.is_file():
        return (
            f"no file that is read by itself; name the folder of {WEIGHTS} or of shards, the .index file of a TensorFlow "
            "checkpoint, a .h5 file of transformers 4 or a .bin file of PyTorch"
        )
    return f"neither {H5} nor a TensorFlow checkpoint (NAME.index) nor {PICKLE} nor {WEIGHTS} is there"


def kind_of(path: Path) -> str | None:
    """Return "safetensors", "h5", "google" or "pickle", the first that is there, or None."""
    try:
        if path.is_dir():
            if (path / WEIGHTS).exists() or (path / INDEX).exists():
                return "safetensors"
            if (path / H5).is_file() or (path / H5_INDEX).is_file():
                return "h5"
            if any(has_data(index) for index in path.glob("*.index")):
                return "google"
            if (path / PICKLE).is_file() or (path / PICKLE_INDEX).is_file():
                return "pickle"
            return "google" if any(path.glob("*.index")) else None
        if path.suffix in (".h5", ".hdf5") and path.is_file():
            return "h5"
        if path.with_name(path.name + ".index").is_file() or (path.suffix == ".index" and path.is_file()):
            return "google"
        return "pickle" if path.suffix in (".bin", ".pt", ".pth") and path.is_file() else None
    except (OSError, ValueError):  # a name too long for a path, or none at all
        return None


def has_data(index: Path) -> bool:
    """Return whether a data file lies beside an index; other programs' indexes have none."""
    return any(file.name.startswith(f"{index.stem}.data-") for file in index.parent.glob("*.data-*"))


def is_of_keras(folder: Path) -> bool:
    """Return whether a folder's safetensors have transformers' names in Keras."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weight_files(folder, str(folder))[0], "pt") as stream:
            return (stream.metadata() or {}).get("format") == "tf"
    except (SafetensorError, OSError, UserError):  # the one who reads it says what is wrong
        return False


def is_wrapped_pickle(folder: Path) -> bool:
    """Return whether names in a folder's pickle have a wrapper's prefix. No weights are read."""
    import torch

    try:
        files = [folder / PICKLE] if (folder / PICKLE).is_file() else shards(folder / PICKLE_INDEX, str(folder), "bin")
        weights = torch.load(files[0], map_location="meta", weights_only=True)
        return any(LEADING_WRAPPERS.search(name) or INNER_WRAPPERS.search(name) for name in weights)
    except Exception:  # a damaged pickle raises errors of any type; the one who reads it says what is wrong
        return False


def shards(index: Path, source: str, kind: str) -> list[Path]:
    """Return the files that an index names, each once."""
    places = read_json(index, source).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{source}: {index.name} has no weight_map of file names")
    found = []
    for name in sorted(set(places.values())):
        if not re.fullmatch(rf"[\w-][\w.-]{{,200}}\.{kind}", name, re.ASCII):
            raise UserError(f"{source}: {index.name} names {name!r:.80}; allowed: .{kind} files in the same folder")
        found.append(index.with_name(name))
    for file in found:
        if not file.is_file():
            raise UserError(f"{source}: {file.name}, which {index.name} names, is missing")
    return found
