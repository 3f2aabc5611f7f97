"""Find and read the weight files of a checkpoint, and change them into one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mobilebert.modeling.checkpoint_config import CONFIG, INDEX, WEIGHTS, read_json
from mobilebert.util.errors import UserError

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # by safetensors' names; others are refused

# Prefixes that DataParallel, torch.compile and fully sharded training add to weights' names.
LEADING_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)+")
INNER_WRAPPERS = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNT = re.compile(r"(?:layers?|groups|networks|blocks|experts)$")


class Tensor(NamedTuple):
    """One entry of a safetensors header."""

    type: str  # F32, I8, ...
    shape: tuple[int, ...]


# ---- weights


def weight_files(folder: Path, source: str) -> list[Path]:
    """Return model.safetensors, or the files that model.safetensors.index.json names.

    Raises UserError if a file is missing or outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS).is_dir():
        raise UserError(f"{source}: {WEIGHTS} is a folder, not a file")
    if not (folder / INDEX).is_file():
        others = sorted(path.name for kind in ("*.bin", "*.h5", "*.index") for path in folder.glob(kind))
        kind = "a pickle" if others and others[0].endswith(".bin") else "TensorFlow's"
        hint = f"{others[0]} is {kind}, which is not read here; `mobilebert convert` reads it" if others else "not a checkpoint"
        raise UserError(f"{source}: no {WEIGHTS}; {hint}")
    names = shard_names(folder / INDEX, source)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{source}: {missing[0]}, which {INDEX} names, is missing")
    return [folder / name for name in names]


def shard_names(index: Path, source: str) -> list[str]:
    """Return the file names in an index, each once, sorted."""
    places = read_json(index, source).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{source}: {INDEX} has no weight_map of file names")
    names = sorted(set(places.values()))
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise UserError(f"{source}: {INDEX} names {name!r:.80}; allowed: .safetensors files in the same folder")
    return names


def read_tensors(files: list[Path], source: str) -> dict[str, Tensor]:
    """Return every tensor's type and shape, from the headers alone.

    Raises UserError if a file is not safetensors, or if there are no weights.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stream:
                for key in stream.keys():  # noqa: SIM118 - not a mapping
                    piece = stream.get_slice(key)
                    found[key] = Tensor(piece.get_dtype(), tuple(piece.get_shape()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{source}: {file.name}: no safetensors file that can be read ({error})") from None
    if not found:
        raise UserError(f"{source}: {files[0].name} holds no weights")
    return found


def float_types(tensors: Mapping[str, Tensor]) -> str:
    """Return the types of the float weights, separated by commas: "bfloat16, float32"."""
    return ", ".join(sorted({FLOATS[tensor.type] for tensor in tensors.values() if tensor.type in FLOATS}))


def check_counts(values: Mapping, tensors: Mapping[str, object], source: object) -> None:
    """Raise UserError if a configuration has more layers than the checkpoint has tensors.

    Otherwise a model of a million layers would take hours to build.
    """
    rest: list = [values]
    while rest:
        here = rest.pop()
        for key, value in here.items():
            if isinstance(value, int) and _COUNT.search(str(key)) and value > len(tensors):
                raise UserError(f"{source}: {key} is {value} in {CONFIG}, but there are only {len(tensors)} weights")
        rest += [value for value in here.values() if isinstance(value, Mapping)]


def unwrap(files: list[Path], tensors: Mapping[str, Tensor], folder: Path, source: str) -> str | None:
    """Remove the prefixes that a wrapper added to the weights' names; return a note about it.

    Write the weights to model.safetensors in `folder`, the temporary folder of `checked`. Remove
    all other files there whose names start with "model". Return None, and write nothing, if no name
    has a wrapper's prefix. Raises UserError if a weight is there with and without a prefix.
    """
    names = {key: INNER_WRAPPERS.sub("", LEADING_WRAPPERS.sub("", key)) for key in tensors}
    if not (changed := [key for key, name in names.items() if name != key]):
        return None
    if len(set(names.values())) < len(names):
        raise UserError(f"{source}: {changed[0]} is there with and without a wrapper's prefix; remove one of the two")
    from safetensors.torch import load_file, save_file

    weights = {names[key]: value for file in files for key, value in load_file(file).items()}
    for file in folder.glob("model*"):
        file.unlink()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    wrappers = {word for key in changed for word in key.split(".") if word == "module" or word.startswith("_")}
    return (
        f"{source}: saved through a wrapper: {', '.join(f'{word}.' for word in sorted(wrappers))} taken off the names of "
        f"{len(changed)} weights"
    )


def convert_pickle(path: Path, out: Path, source: str) -> None:
    """Write the tensors of a hub's pytorch_model.bin to `out` as safetensors.

    Nothing else is unpickled. Raises UserError if the file holds more than tensors.
    """
    import torch
    from safetensors.torch import save_file

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle raises errors of any type
        raise UserError(f"{source}: {path.name} is not a pickle of weights alone, so it is not read") from None
    if not isinstance(weights, dict) or not all(torch.is_tensor(value) for value in weights.values()):
        raise UserError(f"{source}: {path.name} holds more than weights, so it is not read")
    save_file({str(key): value.clone().contiguous() for key, value in weights.items()}, out, {"format": "pt"})
