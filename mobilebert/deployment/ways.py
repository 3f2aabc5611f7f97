"""Quantize a fine-tuned model in any of several ways, and describe each result in one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.deployment import int8
from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.table import ENGINES, int8_flops, int8_share
from mobilebert.deployment.export import INPUTS
from mobilebert.deployment.layer_errors import broken, hidden_errors, hidden_states, layer_errors, layer_outputs, relative_error
from mobilebert.deployment.quantized_files import AWARE, FILES, FIRST
from mobilebert.jobs.record import Quantization
from mobilebert.util.errors import UserError

METHODS = {
    FIRST: "dynamic",
    "onnxruntime-static": "static",
    AWARE: "quantization-aware",
    "openvino-int8": "static",
    "litert-dynamic": "dynamic",
    "litert-int8": "static",
    "quanto": "weight-only",
}
FLOAT_EXPORT = 1e-4  # largest relative error of the float32 file's outputs beside PyTorch's


@dataclass(frozen=True)
class Source:
    """A fine-tuned model in every form that a way reads.

    model: in PyTorch, in evaluation mode. checkpoint: its folder. file: its float32 ONNX file.
    rows: batches of one training row each, which fix the ranges of activations; the first one shows
        the error of each layer.
    length: tokens of a sequence of the task, at which FLOPs are counted.
    aware: from quantization-aware training, the trained model in evaluation mode. aware_rows: how
        many rows fixed its ranges.
    """

    model: Any
    checkpoint: Path
    file: Path
    rows: list[dict[str, np.ndarray]]
    length: int
    aware: Any = None
    aware_rows: int = 0


def check_file(loaded: Callable, reference: Callable, rows: list[dict[str, np.ndarray]], path: Path, most: float) -> float:
    """Return the relative error of a file's outputs beside the model's, over all rows.

    Raises UserError if it is larger than `most`: the file then holds another model.
    """
    found, wanted = [], []
    for row in rows:
        outputs = loaded(row)
        known = reference(row)
        found += [outputs[name].ravel() for name in known]
        wanted += [array.ravel() for array in known.values()]
    error = relative_error(np.concatenate(found), np.concatenate(wanted))
    if not error <= most:  # NaN too
        raise UserError(f"{path}: its outputs are off by {error:.2g} of PyTorch's, {most:g} is allowed; it is not the same model")
    return error


def quantize(way: str, source: Source, folder: Path) -> tuple[Any, list[str]]:
    """Write the int8 file of a way into `folder`; return it in memory, and the names of its files.

    The model in memory is a `Loaded` of `engines.table`.
    Raises UserError if the way's packages are not installed, or without rows that it needs.
    """
    path = folder / FILES[way]
    if way == AWARE:
        from mobilebert.deployment.aware_file import export_aware

        export_aware(source.aware, path, length=source.length)
        return programs.load(ENGINES["onnxruntime"], path, 1), [path.name]
    if way == "quanto":
        from mobilebert.deployment import weight_only

        weight_only.write(source.model, path)
        return weight_only.WeightOnlyModel(path, source.model), [path.name, weight_only.layers_file(path).name]
    if way.startswith("litert"):
        from mobilebert.deployment import lite_rt_files

        lite_rt_files.write(way, type(source.model).__name__, source.checkpoint, path, source.rows, source.length)
        return lite_rt_files.PaddedModel(path, source.length), [path.name]
    programs.write(ENGINES[way], source.file, path, source.rows)
    names = [path.name, *(one.name for one in [path.with_suffix(".bin")] if path.suffix == ".xml")]
    return programs.load(ENGINES[way], path, 1), names


def describe(way: str, source: Source, folder: Path, loaded: Any) -> Quantization:
    """Return the record's description of a way's int8 file in `folder`.

    loaded: the file, from `quantize`.
    """
    path = folder / FILES[way]
    kernels = loaded.kernels({name: np.ones((1, source.length), np.int64) for name in INPUTS})
    ran = None if kernels is None else int8_share(int8_flops(kernels), None)
    if path.suffix == ".onnx":
        found = int8.describe(source.file, path, source.length, METHODS[way])
    else:
        weight_range, activations = _integers(way, path, loaded)
        if way == "quanto":
            ran = 0.0  # the weights are made float32 before each product
        found = Quantization(
            method=METHODS[way],
            engine=loaded.ran_with["program"],
            weight_range=weight_range,
            activation_type=activations,
            saturates=False,  # NNCF keeps sums within 16 bits; XNNPACK adds products in 32 bits
            scored_on=int8.processor(),
            bytes_before=source.file.stat().st_size,
            bytes_after=loaded.bytes or 0,
            int8_flops_share=ran,
        )
    calibrated = {FIRST: 0, AWARE: source.aware_rows, "litert-dynamic": 0, "quanto": 0}.get(way, len(source.rows))
    errors = _errors(way, source, path, loaded)
    finite = {layer: error for layer, error in errors.items() if np.isfinite(error)}  # JSON has no other numbers
    more = {"ran_int8_flops_share": ran, "layer_errors": finite, "broken_layers": broken(errors), "calibration_rows": calibrated}
    return found.model_copy(update=more)


def _errors(way: str, source: Source, path: Path, loaded: Any) -> dict[str, float]:
    """Return the error of each layer on the first row; {} for LiteRT, which shows no layers.

    The reference of quantization-aware training is the model that it trained, with its grids.
    """
    row = source.rows[0]
    if way == "quanto":
        return hidden_errors(hidden_states(source.model, row), hidden_states(loaded.model, row))
    if way == AWARE:
        return hidden_errors(hidden_states(source.aware, row), layer_outputs(path, row))
    return {} if way.startswith("litert") else layer_errors(source.file, path, row)


def _integers(way: str, path: Path, loaded: Any) -> tuple[tuple[int, int], str]:
    """Return the range of the weights and the types of activations of a file that is not ONNX."""
    if way == "quanto":
        from mobilebert.deployment.weight_only import weight_range

        return weight_range(path), "float32"
    if way.startswith("litert"):
        return loaded.weight_range(), "int8"
    from mobilebert.deployment.engines.open_vino import integers_of

    return integers_of(path)
