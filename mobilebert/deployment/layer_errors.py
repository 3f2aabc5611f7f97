"""Compare the output of every encoder layer of an int8 ONNX file with the float32 file's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

LAYER = re.compile(r"/(?:encoder|transformer)/layer\.(\d+)/")  # the second is DistilBERT's


def layer_errors(source: Path, target: Path, row: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return |int8 - float32| / |float32| (2-norms) of each layer's output, by the layer's number.

    source, target: the float32 file and the int8 file that was made from it. A layer's output is
    the last float tensor of the layer that both graphs have. A layer without one, or whose output
    is zero or not finite, is left out, as are all layers of an architecture that names them
    otherwise.
    """
    import onnx

    graphs = [onnx.load(path) for path in (source, target)]
    made = [{name for node in graph.graph.node for name in node.output} for graph in graphs]
    last: dict[str, str] = {}
    for node in graphs[0].graph.node:
        match = LAYER.search(node.name)
        if match and node.op_type in ("Reshape", "Add", "LayerNormalization", "Mul", "Gemm") and node.output[0] in made[1]:
            last[match[1]] = node.output[0]
    if not last:
        return {}
    names = list(last.values())
    before, after = (_run(graph, names, row) for graph in graphs)
    errors = {
        layer: float(np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name]))
        for layer, name in last.items()
        if before[name].shape == after[name].shape and np.any(before[name])
    }
    return {layer: error for layer, error in errors.items() if np.isfinite(error)}


def _run(model: onnx.ModelProto, names: list[str], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the named tensors of a graph for one row."""
    import onnx
    import onnxruntime

    del model.graph.output[:]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: np.asarray(row[value.name], np.int64) for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feed)))  # pyrefly: ignore[bad-return]  (dense tensors)
