"""Compare the output of every encoder layer of an int8 model with that of the float32 model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
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
    """Return |output - reference| / |reference| (2-norms); infinite if they cannot be compared."""
    if output.shape != reference.shape or not np.any(reference):
        return float("inf")
    return float(np.linalg.norm(output - reference) / np.linalg.norm(reference))


def layer_errors(source: Path, target: Path, row: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return |int8 - float32| / |float32| (2-norms) of each layer's output, by the layer's number.

    source: the float32 ONNX file. target: the int8 file that was made from it, ONNX or OpenVINO's
    (.xml). A layer's output is the last float tensor of the layer that both files have: with NoNorm
    the stream before its scale and shift (`modeling.folding`). A layer without one is left out, as
    are all layers of an architecture that names them otherwise. See also `hidden_errors`.
    """
    import onnx

    graph = onnx.load(source)
    other = _OpenVino(target) if target.suffix == ".xml" else _Onnx(onnx.load(target))
    last = _last_tensors(graph, other.made)
    if not last:
        return {}
    before, after = (one.run(list(last.values()), row) for one in (_Onnx(graph), other))
    return hidden_errors(*({layer: found[name] for layer, name in last.items()} for found in (before, after)))


def layer_outputs(path: Path, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the last float tensor of each layer of an ONNX file, by the layer's number."""
    import onnx

    graph = onnx.load(path)
    last = _last_tensors(graph, {name for node in graph.graph.node for name in node.output})
    found = _Onnx(graph).run(list(last.values()), row)
    return {layer: found[name] for layer, name in last.items()}


def _last_tensors(graph: onnx.ModelProto, known: Collection[str]) -> dict[str, str]:
    """Return the name of each layer's last float tensor among `known`."""
    last = {}
    for node in graph.graph.node:
        match = LAYER.search(node.name)
        if match and node.op_type in LAST and node.output[0] in known:
            last[match[1]] = node.output[0]
    return last


def hidden_states(model: Any, row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the output of each layer of a PyTorch model, by the layer's number."""
    import torch

    named = inspect.signature(model.forward).parameters
    given = {name: torch.from_numpy(array) for name, array in row.items() if name in named}
    with torch.inference_mode():
        states = model(**given, output_hidden_states=True).hidden_states[1:]  # the first is that of the embeddings
    return {str(layer): state.numpy() for layer, state in enumerate(states)}


def hidden_errors(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the relative error of each layer's output in `after`; not finite if the output is not.

    A layer is left out if `after` lacks it or has another shape, or if its output in `before` is
    zero: there is nothing to compare.
    """
    pairs = {layer: (after[layer], array) for layer, array in before.items() if layer in after}
    return {layer: relative_error(*pair) for layer, pair in pairs.items() if pair[0].shape == pair[1].shape and np.any(pair[1])}


def broken(errors: Mapping[str, float]) -> tuple[str, ...]:
    """Return the numbers of the layers whose error is above BROKEN or not finite, in order."""
    return tuple(sorted((layer for layer, error in errors.items() if not error <= BROKEN), key=int))  # NaN too


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
        return dict(zip(names, session.run(names, feed)))  # pyrefly: ignore[bad-return]  (dense tensors)


class _OpenVino:
    """A file of OpenVINO, made from an ONNX file: its tensors keep their names."""

    def __init__(self, path: Path):
        import openvino

        self._model = openvino.Core().read_model(path)
        self.made = {name for node in self._model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}

    def run(self, names: list[str], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the named tensors for one row."""
        import openvino

        self._model.add_outputs(names)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(self._model, "CPU", settings)
        inputs = [port.get_any_name() for port in compiled.inputs]
        found = compiled({name: np.asarray(row[name], np.int64) for name in inputs})
        return {name: found[name] for name in names}
