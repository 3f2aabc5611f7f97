"""Run an ONNX file in ONNX Runtime, float32 or int8."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mobilebert.deployment.engines.table import Engine, Kernel
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.deployment.static_int8 import quantize_static

# ONNX Runtime's matrix products, before and after its own fusions.
INT8_PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QLinearMatMul")
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", *INT8_PRODUCTS)


class OnnxRuntimeModel:
    """An ONNX file in ONNX Runtime, on the CPU.

    is_fixed: whether the file is loaded again for each shape of input, so that no shape is computed
        as it runs.
    """

    def __init__(self, path: Path, threads: int, is_fixed: bool = False):
        self._path, self._threads, self._is_fixed = path, threads, is_fixed
        self._models: dict[Any, OnnxModel] = {} if is_fixed else {None: OnnxModel(path, threads)}
        self.bytes = path.stat().st_size
        self.ran_with = {
            "program": f"onnxruntime {version('onnxruntime')}",
            "threads": threads,
            "file": path.name,
            "shapes": "fixed" if is_fixed else "free",
        }

    def _shape(self, batch: Mapping[str, np.ndarray]) -> Any:
        return batch["input_ids"].shape if self._is_fixed else None

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Raises UserError as `OnnxModel`."""
        shape = self._shape(batch)
        if shape not in self._models:
            self._models[shape] = OnnxModel(self._path, self._threads, shape=shape)
        return self._models[shape](dict(batch))

    def kernels(self, batch: Mapping[str, np.ndarray]) -> list[Kernel]:
        """Return the nodes that ran after ONNX Runtime's optimizations, with their times.

        A second session runs the file twice, with a profile of the second run.
        """
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            model = OnnxModel(self._path, self._threads, Path(folder, "run"), self._shape(batch))
            model(dict(batch))
            model(dict(batch))
            events = json.loads(Path(model.end_profile()).read_text(encoding="utf-8"))
        starts = [event["ts"] for event in events if event["name"] == "model_run"]
        return kernels_of(event for event in events if event["ts"] >= max(starts))


def kernels_of(events: Iterable[dict]) -> list[Kernel]:
    """Return the kernels in the events of ONNX Runtime's profile of one run."""
    found = []
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        facts = event["args"]
        op, flops = facts["op_name"], 0
        if op in PRODUCTS:
            # A profile has no shape of a packed weight. The output and the first factor are enough.
            (out,), (left,) = (next(iter(facts[key])).values() for key in ("output_type_shape", "input_type_shape"))
            inner = left[0] if len(left) == 2 and left[0] != out[0] else left[-1]  # a Gemm may read it transposed
            flops = 2 * int(np.prod(out)) * inner
        found.append(Kernel(op, op in INT8_PRODUCTS, flops, float(event["dur"])))
    return found


def load(engine: Engine, source: Path, threads: int) -> OnnxRuntimeModel:
    """Return the file in ONNX Runtime."""
    return OnnxRuntimeModel(source, threads, engine.name.endswith("-fixed"))


def write(engine: Engine, source: PreTrainedModel | Path, path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the engine's ONNX file: exported from a model, or quantized from a float32 file."""
    if not isinstance(source, Path):
        export_onnx(source, path, length=rows[0]["input_ids"].shape[1])
    elif engine.file == "model-int8.onnx":
        quantize_int8(source, path)
    else:
        quantize_static(source, path, rows)
