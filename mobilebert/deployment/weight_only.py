"""Store a model's weights as int8 with optimum's quanto; PyTorch computes with them in float32."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mobilebert.deployment.engines import pytorch
from mobilebert.deployment.engines.table import ENGINES
from mobilebert.util.errors import UserError, one_line
from mobilebert.util.files import settle, write_atomically


class WeightOnlyModel(pytorch.PyTorchModel):
    """A file of `write` in PyTorch. model: the module itself."""

    def __init__(self, path: Path, like: Any):
        from optimum.quanto import requantize

        model = copy.deepcopy(like)
        layers = json.loads(layers_file(path).read_text(encoding="utf-8"))
        requantize(model, load_file(path), layers, device=torch.device("cpu"))
        super().__init__(ENGINES["pytorch"], model, 1)
        self.model = model
        self.ran_with |= {"program": f"optimum-quanto {version('optimum-quanto')}", "file": path.name}
        self.bytes = path.stat().st_size


def layers_file(path: Path) -> Path:
    """Return the file beside the weights that lists the quantized layers, as quanto needs it."""
    return path.with_suffix(".json")


def write(model: Any, path: Path) -> None:
    """Write a model's state to `path` (safetensors), with int8 weights of all linear layers.

    Embeddings, norms and biases stay float32: quanto does not quantize them. Raises UserError if
    the files cannot be written.
    """
    from optimum.quanto import freeze, qint8, quantization_map, quantize

    small = copy.deepcopy(model)
    quantize(small, weights=qint8)
    freeze(small)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        save_file({name: value.contiguous() for name, value in small.state_dict().items()}, part)
        write_atomically(layers_file(path), json.dumps(quantization_map(small)).encode())
        settle(part, path)
    except Exception as error:  # safetensors' own, OSError
        raise UserError(f"{path}: cannot be written ({one_line(error)})") from error
    finally:
        part.unlink(missing_ok=True)


def weight_range(path: Path) -> tuple[int, int]:
    """Return the least and greatest integer among a file's weights."""
    found = [value for value in load_file(path).values() if value.dtype == torch.int8]
    return min(int(value.min()) for value in found), max(int(value.max()) for value in found)
