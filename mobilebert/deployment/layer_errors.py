"""Compare the output of every encoder layer of an int8 model with the float32 model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

LAYER = re.compile(r"/(?:encoder|transformer)/layer\.(\d+)/")  # the second is DistilBERT's
LAST = ("Reshape", "Add", "LayerNormalization", "Mul", "Gemm")  # operations that can end a layer

# A layer with a larger error is broken. Dynamic int8 of a healthy model gives 0.01 to 0.03. Layers
# pass their errors on, so the first broken layer is the one to look at.
BROKEN = 0.1


def relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    """Return |output - reference| / |reference| (2-norms), not finite if they cannot be compared."""
    if output.shape != reference.shape or not np.any(reference):
        return float("inf")
    return float(np.linalg.norm(output - reference) / np.linalg.norm(reference))


def layer_errors(source: Path, target: Path, row: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return |int8 - float32| / |float32| (2-norms) of each layer's output, by the layer's number.

    source: the float32 ONNX file. target: the int8 file that was made from it, ONNX or OpenVINO's
    (.xml). A layer's output is the last float tensor of the layer that both files have. A layer
    without one, or whose output is zero or not finite, is left out, as are all layers of an
    architecture that names them otherwise.
    """
    import onnx

    graph = onnx.load(source)
    other = _OpenVino(target) if target.suffix == ".xml" else _Onnx(onnx.load(target))
    last: dict[str, str] = {}
    for node in graph.graph.node:
        match = LAYER.search(node.name)
        if match and node.op_type in LAST and node.output[0] in other.made:
            last[match[1]] = node.output[0]
    if not last:
        return {}
    before, after = (one.run(list(last.values()), row) for one in (_Onnx(graph), other))
    return _finite({layer: relative_error(after[name], before[name]) for layer, name in last.items()})


def hidden_errors(model: Any, other: Any, row: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the error of each layer of `other` beside `model`, as `layer_errors`.

    model, other: PyTorch models of one architecture, with transformers' hidden states.
    """
    import inspect

    import torch

    named = inspect.signature(model.forward).parameters
    given = {name: torch.from_numpy(array) for name, array in row.items() if name in named}
    with torch.inference_mode():
        found = [one(**given, output_hidden_states=True).hidden_states for one in (model, other)]
    pairs = zip(*([state.numpy() for state in states[1:]] for states in found))  # the first is that of the embeddings
    return _finite({str(layer): relative_error(after, before) for layer, (before, after) in enumerate(pairs)})


def broken(errors: Mapping[str, float]) -> tuple[str, ...]:
    """Return the numbers of the layers whose error is larger than BROKEN, in their order."""
    return tuple(sorted((layer for layer, error in errors.items() if error > BROKEN), key=int))


def _finite(errors: dict[str, float]) -> dict[str, float]:
    return {layer: error for layer, error in errors.items() if np.isfinite(error)}


class _Onnx:
    """A graph whose inner tensors can be read. made: their names."""

    def __init__(self, model: onnx.ModelProto):
        self._model = model
        self.made = {name for node in model.graph.node for name in node.output}

    def run(self, names: list[str], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the named tensors for one row."""
        import onnx
        import onnxruntime

        del self._model.graph.output[:]
        for name in names:
            self._model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        session = onnxruntime.InferenceSession(self._model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {value.name: np.asarray(row[value.name], np.int64) for value in session.get_inputs()}
        return dict(zip(names, session.run(names, feed)))  # pyright: ignore[reportReturnType]  (dense tensors)


class _OpenVino:
    """A file of OpenVINO, made from an ONNX file: its tensors keep their names."""

    def __init__(self, path: Path):
        import openvino  # pyright: ignore[reportMissingImports]

        self._model = openvino.Core().read_model(path)
        self.made = {name for node in self._model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}

    def run(self, names: list[str], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the named tensors for one row."""
        import openvino  # pyright: ignore[reportMissingImports]

        self._model.add_outputs(names)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(self._model, "CPU", settings)
        inputs = [port.get_any_name() for port in compiled.inputs]
        found = compiled({name: np.asarray(row[name], np.int64) for name in inputs})
        return {name: found[name] for name in names}
