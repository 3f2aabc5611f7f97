"""Quantize an ONNX file in any of several ways, and describe each result in the same shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobilebert.deployment import int8
from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.open_vino import integers_of
from mobilebert.deployment.engines.table import ENGINES, Loaded, int8_flops, int8_share
from mobilebert.deployment.export import INPUTS
from mobilebert.deployment.layer_errors import layer_errors
from mobilebert.jobs.record import Quantization

FIRST = "onnxruntime-int8"
FILES = {FIRST: "model.int8.onnx", "onnxruntime-static": "model.static.onnx", "openvino-int8": "model.nncf.xml"}


def quantize(engine: str, source: Path, folder: Path, rows: list[dict[str, np.ndarray]]) -> tuple[Loaded, list[str]]:
    """Write an engine's int8 file into `folder`; return it in memory, and the names of its files.

    source: a float32 ONNX file. rows: batches of one training row each, which fix the ranges of
    activations; FIRST does not read them. Raises UserError if the engine is not installed, or
    without rows that it needs.
    """
    path = folder / FILES[engine]
    programs.write(ENGINES[engine], source, path, rows)
    names = [path.name, *(one.name for one in [path.with_suffix(".bin")] if path.suffix == ".xml")]
    return programs.load(ENGINES[engine], path, 1), names


def describe(
    engine: str, source: Path, folder: Path, loaded: Loaded, rows: list[dict[str, np.ndarray]], length: int
) -> Quantization:
    """Return the record's description of an engine's int8 file in `folder`.

    rows: those that `quantize` was given; the first one shows, for ONNX files, the error of each
    layer. length: tokens of a sequence of the task, at which FLOPs are counted.
    """
    path = folder / FILES[engine]
    kernels = loaded.kernels({name: np.ones((1, length), np.int64) for name in INPUTS})
    ran = None if kernels is None else int8_share(int8_flops(kernels), None)
    if path.suffix == ".onnx":
        found = int8.describe(source, path, length, "dynamic" if engine == FIRST else "static")
        errors = layer_errors(source, path, rows[0])
    else:
        weight_range, activations = integers_of(path)
        found = Quantization(
            method="static",
            engine=loaded.ran_with["program"],
            weight_range=weight_range,
            activation_type=activations,
            saturates=False,  # NNCF's overflow fix keeps the sums of two products within 16 bits
            scored_on=int8.processor(),
            bytes_before=source.stat().st_size,
            bytes_after=loaded.bytes or 0,
            int8_flops_share=ran,
        )
        errors = {}
    calibration_rows = 0 if engine == FIRST else len(rows)
    more = {"ran_int8_flops_share": ran, "layer_errors": errors, "calibration_rows": calibration_rows}
    return found.model_copy(update=more)
