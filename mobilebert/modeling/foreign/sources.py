"""Read a checkpoint of any kind into arrays with PyTorch's names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.modeling.checkpoint_config import CONFIG, PICKLE, check_values, name_classes, read_json
from mobilebert.modeling.foreign import garden, names
from mobilebert.modeling.foreign.bundle import BFLOAT16, Bundle
from mobilebert.modeling.foreign.garden_config import PARAMS, read_params
from mobilebert.modeling.foreign.google_config import from_google, is_google
from mobilebert.modeling.foreign.hdf5 import H5, H5_INDEX, read_h5
from mobilebert.modeling.foreign.kinds import PICKLE_INDEX, has_data, kind_of, shards, what_is_missing
from mobilebert.modeling.weight_files import INNER_WRAPPERS, LEADING_WRAPPERS, read_tensors, weight_files
from mobilebert.util.errors import UserError

GOOGLE_CONFIG = "bert_config.json"
OF_KERAS = "transformers' TensorFlow weights"


@dataclass
class Foreign:
    """A checkpoint that was read: arrays with PyTorch's names, and what was found beside them.

    kind: for messages. folder: where its tokenizer may lie. values: the fields of its
    configuration, or None. notes: what was left out or changed, a line each. types: those of
    weights that were converted to float32. shown: fields of the configuration that the names and
    shapes of the variables show.
    """

    source: str
    kind: str
    folder: Path
    arrays: dict[str, np.ndarray]
    values: dict | None = None
    notes: list[str] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    shown: dict[str, Any] = field(default_factory=dict)


def read(source: str, is_configured: bool = False) -> Foreign:
    """Return the checkpoint at a path. Raises UserError, one line, if it cannot be read.

    is_configured: its configuration is given elsewhere, so none is looked for beside the weights.
    """
    path = Path(source).expanduser()
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{source}: {what_is_missing(path)}")
    readers = {"safetensors": _read_safetensors, "h5": _read_h5, "google": _read_bundle, "pickle": _read_pickle}
    found = readers[kind](path, source)
    found.values = None if is_configured else _config_beside(found.folder, source)
    _unwrap(found)
    _to_float32(found)
    return found


# ---- one reader for each kind


def _read_h5(path: Path, source: str) -> Foreign:
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not (path / H5).is_file():
        files = shards(path / H5_INDEX, source, "h5")
    else:
        files = [path / H5 if path.is_dir() else path]
    found = {name: array for file in files for name, array in read_h5(file).items()}
    return _of_keras(found, folder, source)


def _of_keras(found: Mapping[str, np.ndarray], folder: Path, source: str) -> Foreign:
    """Return a checkpoint whose weights have transformers' names in Keras."""
    arrays: dict[str, np.ndarray] = {}
    unknown = []
    for name, array in found.items():
        renamed = names.from_keras(name)
        if renamed is None or names.is_of_training(name):
            unknown.append(name)
        else:
            _put(arrays, renamed[0], array.T if renamed[1] else array, source)
    if not any(name.startswith(("mobilebert.", "embeddings.")) for name in arrays):
        raise UserError(f"{source}: no weights of MobileBERT; its first is {(list(arrays) + unknown)[0]}")
    return Foreign(source, OF_KERAS, folder, arrays, notes=_left_out(unknown))


def _put(arrays: dict[str, np.ndarray], name: str, array: np.ndarray, source: str) -> None:
    """Add an array. Raises UserError if another variable already has its name."""
    if name in arrays:
        raise UserError(f"{source}: two of its variables are {name}; only one can be read")
    arrays[name] = array


def _read_safetensors(path: Path, source: str) -> Foreign:
    from safetensors import safe_open

    files = weight_files(path, source)
    read_tensors(files, source)  # refuses what is no safetensors file
    arrays, is_of_keras, types = {}, False, set()
    for file in files:
        with safe_open(file, "pt") as stream:
            is_of_keras |= (stream.metadata() or {}).get("format") == "tf"
            for name in stream.keys():  # noqa: SIM118 - not a mapping
                _put(arrays, name, _numpy(stream.get_tensor(name), name, source, types), source)
    if is_of_keras:
        return _of_keras(arrays, path, source)
    return Foreign(source, "safetensors", path, arrays, types=types)


def _numpy(tensor: Any, name: str, source: object, types: set[str]) -> np.ndarray:
    """Return a tensor as an array. NumPy has no bfloat16: it becomes float32, and joins `types`.

    Raises UserError for a tensor that NumPy lacks, or that repeats a few values up to any size.
    """
    try:
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{source}: {name} claims more values than the file holds")
        if str(tensor.dtype) != "torch.bfloat16":
            return tensor.detach().numpy()
        types.add("bfloat16")
        return tensor.detach().float().numpy()
    except (TypeError, RuntimeError):
        kind = f"{str(tensor.layout).removeprefix('torch.')} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}"
        raise UserError(f"{source}: {name} is a tensor ({kind}) that cannot be read; only dense floats can be weights") from None


def _read_bundle(path: Path, source: str) -> Foreign:
    """Return a checkpoint of TensorFlow 1 by Google's code, or of 2 by the model garden."""
    prefix = _prefix(path, source)
    bundle = Bundle(prefix)
    found = Foreign(source, "Google's TensorFlow checkpoint", prefix.parent, {})
    if any(name.endswith(f"/.ATTRIBUTES/{garden.VALUE}") for name in bundle.variables):
        found.kind = "the model garden's TensorFlow checkpoint"
        used = _read_garden(bundle, found)
    else:
        used = _read_google(bundle, found)
    unused = [name for name in bundle.variables if name not in used]
    if of_training := [name for name in unused if names.is_of_training(name)]:
        found.notes.append(f"not used: {len(of_training)} variables of the training, as {of_training[0]}")
    found.notes += _left_out([name for name in unused if not names.is_of_training(name)])
    found.types |= {"bfloat16" for name in used if bundle.variables[name].type == BFLOAT16}
    return found


def _read_google(bundle: Bundle, found: Foreign) -> set[str]:
    """Read the variables of Google's code; return the names of those read."""
    used = set()
    for name in bundle.variables:
        renamed = None if names.is_of_training(name) else names.from_google(name)
        if renamed is not None:
            array = bundle.read(name)
            _put(found.arrays, renamed[0], array.T if renamed[1] else array, found.source)
            used.add(name)
    if not any(name.startswith("mobilebert.encoder.") for name in found.arrays):
        first = next(iter(bundle.variables), "nothing")
        raise UserError(f"{bundle.index}: no variables of google-research/mobilebert (bert/encoder/...); its first is {first}")
    has_no_norm = any("/FakeLayerNorm/" in name for name in used if name.startswith("bert/encoder/"))
    found.shown["normalization_type"] = "no_norm" if has_no_norm else "layer_norm"
    return used


def _read_garden(bundle: Bundle, found: Foreign) -> set[str]:
    """Read the variables of the model garden's objects; return the names of those read."""
    objects = garden.Garden(bundle)
    used = {garden.GRAPH}
    for place in objects.places():
        if place.variable in used:  # a small file could make any number of weights
            raise UserError(f"{bundle.index}: damaged: {place.variable:.200} is two weights")
        used.add(place.variable)
        array = bundle.read(place.variable)
        _put(found.arrays, place.name, garden.as_in_pytorch(place, array), found.source)
        if place.name.endswith("layer.0.attention.self.query.bias"):
            found.shown["num_attention_heads"] = array.shape[0]
    found.shown["normalization_type"] = "no_norm" if objects.has_no_norm else "layer_norm"
    return used


def _read_pickle(path: Path, source: str) -> Foreign:
    import torch

    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not (path / PICKLE).is_file():
        files = shards(path / PICKLE_INDEX, source, "bin")
    else:
        files = [path / PICKLE if path.is_dir() else path]
    arrays: dict[str, np.ndarray] = {}
    types: set[str] = set()
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's, of kinds of tensors that are refused below
                weights = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # a damaged pickle raises errors of any type
            raise UserError(f"{file}: truncated, or holds more than weights, so it is not read") from None
        if not isinstance(weights, dict) or not all(torch.is_tensor(value) for value in weights.values()):
            raise UserError(f"{file}: holds more than weights, so it is not read")
        for name, value in weights.items():
            _put(arrays, str(name), _numpy(value, str(name), file, types), source)
    return Foreign(source, "PyTorch's pickle", folder, arrays, types=types)


# ---- what is beside the weights


def _prefix(path: Path, source: str) -> Path:
    """Return the path of a checkpoint without `.index`."""
    if path.is_dir():
        indexes = sorted(path.glob("*.index"))
        found = [index for index in indexes if has_data(index)] or indexes
        if len(found) > 1:
            raise UserError(f"{source}: {len(found)} checkpoints, as {found[0].name}; name one of them")
        path = found[0]
    return path.with_suffix("") if path.suffix == ".index" else path


def _config_beside(folder: Path, source: str) -> dict | None:
    """Return the configuration in a folder, or None if there is none.

    It is config.json, or the only JSON file that is Google's, or the model garden's params.yaml.
    """
    if (folder / CONFIG).is_file():
        return read_configuration(folder / CONFIG)
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            if is_google(read_json(file, source)):
                found.append(file)
        except UserError:  # of a file for something else, unless it has Google's name
            if file.name == GOOGLE_CONFIG:
                raise
    if len(found) > 1:
        raise UserError(f"{source}: {len(found)} configurations, as {found[0].name}; choose one with --config")
    if not found and (folder / PARAMS).is_file():
        found = [folder / PARAMS]
    return read_configuration(found[0]) if found else None


def read_configuration(file: Path) -> dict:
    """Return the fields of `MobileBertConfig` in a file of transformers, Google or the garden."""
    if file.suffix in (".yaml", ".yml"):
        return read_params(file)
    values = read_json(file, str(file.parent))
    if is_google(values):
        return from_google(values, file)
    check_values(values, file.name, str(file.parent))
    if values.get("model_type", "mobilebert") != "mobilebert":
        raise UserError(f"{file}: model_type is {values['model_type']!r:.60}, not 'mobilebert'")
    name_classes(values, str(file.parent))
    return values


def _left_out(unknown: list[str]) -> list[str]:
    return [f"not used, because no class has them: {', '.join(unknown)}"] if unknown else []


def _unwrap(found: Foreign) -> None:
    """Take the prefixes of wrappers off the names (module., _orig_mod.), and say so."""
    renamed = {name: INNER_WRAPPERS.sub("", LEADING_WRAPPERS.sub("", name)) for name in found.arrays}
    changed = [name for name, bare in renamed.items() if bare != name]
    if len(set(renamed.values())) < len(renamed):
        raise UserError(f"{found.source}: {changed[0]} is there with and without a wrapper's prefix; remove one of the two")
    if changed:
        found.arrays = {renamed[name]: array for name, array in found.arrays.items()}
        found.notes.append(f"a wrapper's prefix was taken off {len(changed)} names, as {changed[0]}")


def _to_float32(found: Foreign) -> None:
    """Convert all arrays to float32, and say so. Raises UserError for integers, NaN, infinity."""
    types = found.types
    for name, array in found.arrays.items():
        if name.endswith("position_ids"):
            continue
        if array.dtype.kind != "f":
            raise UserError(f"{found.source}: {name} has type {array.dtype}; only floats can be weights")
        if array.dtype != np.float32:
            types.add(str(array.dtype))
        found.arrays[name] = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(found.arrays[name]).all():
            raise UserError(f"{found.source}: {name} holds NaN or infinite values; only finite weights can be loaded")
    if types:
        found.notes.append(f"{', '.join(sorted(types))} weights were converted to float32")
