"""Load and save the weights of Keras models in the folder layout of the PyTorch classes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert import modeling
from mobilebert.modeling.checkpoint_config import CONFIG, WEIGHTS
from mobilebert.modeling.checkpoint_files import checked
from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.foreign.convert import converted, needs_conversion
from mobilebert.modeling.loading import check_size, configuration, one_refusal
from mobilebert.modeling.weight_files import FLOATS, weight_files
from mobilebert.tf.parts import Named, weights_of_parts
from mobilebert.util.errors import UserError, allowed
from mobilebert.util.files import write_atomically

logger = logging.getLogger(__name__)

PREFIX = "mobilebert."
BODY = ("embeddings.", "encoder.")  # weights that every checkpoint must have


def named_weights(model: Any) -> dict[str, Named]:
    """Return the weights of a model by the names of the PyTorch class."""
    found = dict(weights_of_parts(model))
    if set(found) and all(name.startswith(PREFIX) for name in found):  # the model without a head
        return {name.removeprefix(PREFIX): named for name, named in found.items()}
    return found


def state_dict(model: Any) -> dict[str, np.ndarray]:
    """Return the weights as arrays with PyTorch's names and shapes."""
    return {name: _array(named) for name, named in named_weights(model).items()}


def _array(named: Named) -> np.ndarray:
    array = np.asarray(named.variable)
    return np.ascontiguousarray(array.T if named.is_transposed else array)


def load_state_dict(
    model: Any,
    arrays: Mapping[str, Any],
    source: object = "load_state_dict",
    may_lack_head: bool = False,
    may_differ: bool = False,
) -> None:
    """Set a model's weights from arrays with PyTorch's names and shapes.

    may_lack_head: whether weights outside embeddings and encoder may be missing or unknown. They
        are reported.
    may_differ: whether those weights may have another shape; they are then not set, and reported.
    Raises UserError, before any weight is changed, if a weight is missing, unknown, not finite or
    of another shape.
    """
    wanted = named_weights(model)
    given = {name.removeprefix(PREFIX): value for name, value in arrays.items() if not name.endswith(".position_ids")}
    found, missing = {}, []
    tied = _tied(wanted)
    for name, named in wanted.items():
        bare = name.removeprefix(PREFIX)
        key = next((key for key in (bare, *tied.get(bare, ())) if key in given), None)
        if key is None:
            missing.append(bare)
            continue
        array = np.asarray(given[key], np.float32)
        shape = tuple(named.variable.shape)[:: -1 if named.is_transposed else 1]
        if array.shape != shape:
            if may_differ and not bare.startswith(BODY):
                missing.append(f"{bare} {shape}, which was {array.shape}")
                continue
            raise UserError(f"{source}: {name} has shape {array.shape}, the model's is {shape}")
        if not np.isfinite(array).all():
            raise UserError(f"{source}: {name} holds NaN or infinite values; only finite weights can be loaded")
        found[name] = array.T if named.is_transposed else array
    known = {name.removeprefix(PREFIX) for name in wanted}
    unknown = sorted(set(given) - known - {key for keys in tied.values() for key in keys})
    for names, says in ((missing, "it has no"), (unknown, "the model has no")):
        if bad := [name for name in names if not may_lack_head or name.startswith(BODY)]:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise UserError(f"{source}: weights of another architecture: {says} {bad[0]}{more}")
    for name, array in found.items():
        wanted[name].variable.assign(array)
    if missing:
        logger.warning("%s: new weights, which the checkpoint lacks: %s", source, ", ".join(missing))
    if unknown:
        logger.warning("%s: weights that the model has no place for: %s", source, ", ".join(unknown))


def _tied(wanted: Mapping[str, Named]) -> dict[str, list[str]]:
    """Return, for each name of a weight that has several, its other names."""
    names: dict[int, list[str]] = {}
    for name, named in wanted.items():
        names.setdefault(id(named.variable), []).append(name.removeprefix(PREFIX))
    return {name: [other for other in group if other != name] for group in names.values() if len(group) > 1 for name in group}


def load(
    kind: Any, source: str | os.PathLike, config: MobileBertConfig | None, overrides: dict[str, Any], may_differ: bool = False
) -> Any:
    """Return a model of class `kind` with the weights of a folder or a hub name.

    may_differ: as in `load_state_dict`.
    """
    from safetensors.torch import load_file

    default = MobileBertConfig()
    if unknown := [name for name in overrides if not hasattr(default, name)]:
        fields = allowed(("num_labels", *default.to_dict()), unknown[0])
        raise UserError(f"from_pretrained: {unknown[0]!r} is no field of the configuration; {fields}")
    path = Path(source)
    with converted(path) if needs_conversion(path) else contextlib.nullcontext(source) as place, checked(place) as files:
        with one_refusal(files.source, files.folder):
            values = (configuration(files, _Reader) if config is None else config).to_dict()
            chosen: MobileBertConfig = MobileBertConfig.from_dict({**values, **overrides})
        check_size(getattr(modeling, kind.__name__.removeprefix("TF")), chosen, files.tensors, files.source)
        for name, tensor in sorted(files.tensors.items()):
            if tensor.type not in FLOATS and not name.endswith(".position_ids"):
                raise UserError(f"{source}: {name} has type {tensor.type}; allowed: {', '.join(FLOATS.values())}")
        arrays = {}
        for path in weight_files(files.folder, files.source):
            arrays |= {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
        model = kind(chosen)
        load_state_dict(model, arrays, source, may_lack_head=True, may_differ=may_differ)
        model.config.name_or_path = str(source)
        for note in files.notes:
            logger.warning("%s", note)
        if files.type != "float32":
            logger.warning("%s: %s weights are loaded as float32", files.source, files.type)
        return model


class _Reader:
    """The class whose configuration `configuration` reads."""

    config_class = MobileBertConfig


def save(model: Any, folder: str | os.PathLike) -> None:
    """Write config.json and model.safetensors, which the PyTorch classes read, into a folder."""
    from safetensors.numpy import save as serialised

    folder = Path(folder)
    named = named_weights(model)
    tied = _tied(named)
    arrays = {}
    for name, weight in named.items():
        if not any(other in arrays or PREFIX + other in arrays for other in tied.get(name.removeprefix(PREFIX), ())):
            arrays[name] = _array(weight)  # a tied weight has one name in the file, as in PyTorch's
    config = MobileBertConfig.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__.removeprefix("TF")]
    config.dtype = "float32"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, serialised(arrays, {"format": "pt"}))
    write_atomically(folder / CONFIG, config.to_json_string().encode())
