"""Run a model in OpenVINO: float32 or bfloat16 from an ONNX file, int8 through NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mobilebert.deployment.engines.table import Engine, Kernel
from mobilebert.deployment.export import OUTPUTS, export_onnx
from mobilebert.util.errors import UserError, one_line
from mobilebert.util.files import settle

PRODUCTS = ("FullyConnected", "MatMul", "Gemm")
SCALED = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")  # between a stored integer weight and its product


class OpenVinoModel:
    """A model in OpenVINO, on the CPU.

    An engine whose name ends in -fixed compiles the model again for each shape of input, so that no
    shape is computed as it runs.
    """

    def __init__(self, engine: Engine, path: Path, threads: int):
        import openvino

        core = openvino.Core()
        precision = "bf16" if engine.name == "openvino-bf16" else "f32"
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("openvino-bf16: this processor has no bfloat16 instructions (AMX-BF16 or AVX512-BF16)")
        # OpenVINO would choose bfloat16 by itself on AMX: a float32 baseline must ask for float32.
        self._settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._path, self._is_fixed = path, engine.name.endswith("-fixed")
        self.bytes = path.stat().st_size + sum(one.stat().st_size for one in [path.with_suffix(".bin")] if one.is_file())
        self.ran_with = {
            "program": f"openvino {version('openvino')}",
            "threads": threads,
            "precision": precision,
            "file": path.name,
            "shapes": "fixed" if self._is_fixed else "free",
        }
        self._requests: dict[Any, Any] = {} if self._is_fixed else {None: self._compile({}, None)}

    def _shape(self, batch: Mapping[str, np.ndarray]) -> Any:
        return next(iter(batch.values())).shape if self._is_fixed else None

    def _compile(self, more: dict[str, Any], shape: tuple[int, int] | None) -> Any:
        import openvino

        core = openvino.Core()
        try:
            model = core.read_model(self._path)
            if shape is not None:
                model.reshape({port.get_any_name(): list(shape) for port in model.inputs})
            compiled = core.compile_model(model, "CPU", self._settings | more)
        except RuntimeError as error:
            problem = "OpenVINO cannot read it" if shape is None else f"OpenVINO cannot compile it for inputs of {shape}"
            raise UserError(f"{self._path}: {problem} ({one_line(error)})") from None
        self.ran_with["threads"] = int(compiled.get_property("INFERENCE_NUM_THREADS"))  # no more than there are cores
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        known = {name for group in OUTPUTS for name in group}  # a port has the names of inner tensors too
        self._outputs = [next(iter(known & port.get_names()), port.get_any_name()) for port in compiled.outputs]
        return compiled.create_infer_request()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Raises UserError if the model does not take the batch."""
        shape = self._shape(batch)
        if shape not in self._requests:
            self._requests[shape] = self._compile({}, shape)
        return self._run(self._requests[shape], batch)

    def _run(self, request, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if unknown := [name for name in self._inputs if name not in batch]:
            raise UserError(f"{self._path}: needs the input {unknown[0]}; given are {', '.join(batch)}")
        try:
            found = request.infer({name: np.asarray(batch[name], np.int64) for name in self._inputs}, share_inputs=True)
        except RuntimeError as error:
            raise UserError(f"{self._path}: does not run in OpenVINO ({one_line(error)})") from None
        return {name: found[place] for place, name in enumerate(self._outputs)}

    def kernels(self, batch: Mapping[str, np.ndarray]) -> list[Kernel]:
        """Return the nodes of the compiled graph with their times, from a second compilation."""
        request = self._compile({"PERF_COUNT": True}, self._shape(batch))
        for _ in range(2):  # OpenVINO keeps the times of the last run; the first warms up
            self._run(request, batch)
        return kernels_of(request.get_compiled_model().get_runtime_model().get_ordered_ops())


def kernels_of(nodes: Iterable[Any]) -> list[Kernel]:
    """Return the kernels among the nodes of a compiled graph: those that ran, for at least 1 us.

    OpenVINO reports a node that took less as not executed.
    """
    found = []
    for node in nodes:
        facts = node.get_rt_info()
        op, precision, us = (facts[key].value for key in ("layerType", "runtimePrecision", "execTimeMcs"))
        if us == "not_executed":
            continue
        flops = 0
        if op in PRODUCTS:
            inner = node.input(0).get_partial_shape().to_shape()[-1]
            flops = 2 * int(np.prod(node.output(0).get_partial_shape().to_shape())) * inner
        found.append(Kernel(op, op in PRODUCTS and precision in ("i8", "u8"), flops, float(us)))
    return found


def load(engine: Engine, source: Path, threads: int) -> OpenVinoModel:
    """Return the file in OpenVINO."""
    return OpenVinoModel(engine, source, threads)


def write(engine: Engine, source: PreTrainedModel | Path, path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the ONNX file of a model, or OpenVINO's int8 files (.xml, .bin) from an ONNX file."""
    if isinstance(source, Path):
        quantize_nncf(source, path, rows)
    else:
        export_onnx(source, path, length=rows[0]["input_ids"].shape[1])


def quantize_nncf(source: Path, target: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the model of an ONNX file to `target` (.xml, and .bin beside it) in int8, with NNCF.

    NNCF runs the model on `rows`, batches of inputs, to fix the ranges of the activations. It
    quantizes products with weights, and products of two activations too. Weights keep to half
    their range, because without VNNI sums of two products could overflow 16 bits.

    Raises UserError without rows, and if NNCF or OpenVINO cannot read the model.
    """
    if not rows:
        raise UserError(f"{target}: no rows to calibrate on; the ranges of the activations come from at least one batch")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    nncf.set_log_level(logging.ERROR)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        model = openvino.Core().read_model(source)
        names = [port.get_any_name() for port in model.inputs]
        data = nncf.Dataset([{name: np.asarray(row[name], np.int64) for name in names} for row in rows])
        with contextlib.redirect_stdout(io.StringIO()):  # it draws a progress bar
            quantized = nncf.quantize(
                model,
                data,
                subset_size=len(rows),
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
            )
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            openvino.save_model(quantized, Path(folder, "model.xml"), compress_to_fp16=False)
            settle(Path(folder, "model.bin"), target.with_suffix(".bin"))
            settle(Path(folder, "model.xml"), target)
    except Exception as error:  # the two libraries raise exceptions without a common base
        raise UserError(f"{target}: cannot be written ({one_line(error)})") from error


def integers_of(path: Path) -> tuple[tuple[int, int], str]:
    """Return the least and greatest weight of products in NNCF's file, and its activations' types.

    The types are "uint8", "int8" or both with a comma. A quantizer whose range starts below zero
    gives int8.
    """
    import openvino

    low, high, types = 0, 0, set()
    for node in openvino.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "MatMul":
            weight: Any = node.input_value(1).get_node()
            while weight.get_type_name() in SCALED:
                weight = weight.input_value(0).get_node()
            if weight.get_type_name() == "Constant" and weight.get_element_type() == openvino.Type.i8:
                low, high = min(low, int(weight.get_data().min())), max(high, int(weight.get_data().max()))
        elif node.get_type_name() == "FakeQuantize":
            start: Any = node.input_value(1).get_node()
            types.add("int8" if (start.get_data() < 0).any() else "uint8")
    return (low, high), ", ".join(sorted(types))
