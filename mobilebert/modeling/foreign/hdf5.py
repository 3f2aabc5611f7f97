"""Read the weights of a tf_model.h5 with h5py, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.util.errors import UserError

H5, H5_INDEX = "tf_model.h5", "tf_model.h5.index.json"


def read_h5(path: Path) -> dict[str, np.ndarray]:
    """Return all weights of a file by their names in Keras.

    Raises UserError if it is no HDF5 file, is cut off, or holds no weights of Keras; also if a
    weight lies in another file, or is larger than this one.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            found: dict[str, np.ndarray] = {}
            for layer in _names(file, "layer_names"):
                part: Any = file[layer]
                if isinstance(part, h5py.Dataset):  # a shard has no layers
                    found[layer] = _array(part, file, path)
                    continue
                found |= {name: _array(part[name], file, path) for name in _names(part, "weight_names")}
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: truncated, or no HDF5 file ({' '.join(str(error).split())[:120]})") from None
    except (KeyError, AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: an HDF5 file, but not of weights that Keras wrote") from None
    if not found:
        raise UserError(f"{path}: an HDF5 file, but it holds no weights that transformers' TensorFlow classes wrote")
    return found


def _array(part: Any, file: Any, path: Path) -> np.ndarray:
    """Return the values of a data set, which must lie inside the file."""
    if part.file.filename != file.filename or part.external or part.is_virtual:
        raise UserError(f"{path}: {part.name} lies in another file; only weights inside the file are read")
    if part.nbytes > path.stat().st_size:
        raise UserError(f"{path}: {part.name} has {part.nbytes:,} bytes, so it is larger than the file")
    return np.asarray(part)


def _names(group: Any, attribute: str) -> list[str]:
    """Return the names in an attribute. Keras splits a long list: weight_names0, weight_names1."""
    keys = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(keys)}" in group.attrs:
        keys.append(f"{attribute}{len(keys)}")
    return [name.decode() if isinstance(name, bytes) else str(name) for key in keys for name in group.attrs[key]]
