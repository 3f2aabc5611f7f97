"""Write a model that was trained with fake quantization as an int8 ONNX file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.fake_quantization import settle
from mobilebert.util.errors import UserError
from mobilebert.util.files import settle as keep

if TYPE_CHECKING:
    import onnx


def export_aware(model: Any, path: Path, *, length: int) -> None:
    """Write a model from `fake_quantization.aware` to `path`.

    The file has the model's grids: int8 weights and tables, and quantizers before every
    product with weights and before the softmax. Products of two activations stay float32, as in
    the model. The file appears under its name only when it is complete. Raises UserError as
    `export_onnx`.
    """
    import onnx

    settle(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            export_onnx(model, Path(folder, "model.onnx"), length=length, folds=False)
            found = onnx.load(Path(folder, "model.onnx"))
            store_integers(found)
            onnx.save(found, Path(folder, "int8.onnx"))
            keep(Path(folder, "int8.onnx"), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def store_integers(model: onnx.ModelProto) -> None:
    """Replace constants that a graph quantizes by their integers, in place.

    A table that is looked up is dequantized after the lookup, not before: only the rows that are
    read are converted.
    """
    import onnx

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    arrays = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in constants.items()}
    for node in graph.node:  # the exporter stores equal constants once
        if node.op_type == "Identity" and node.input[0] in arrays:
            arrays[node.output[0]] = arrays[node.input[0]]
    nodes, stored = [], {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in arrays:
            values, scale, zero = (arrays[name] for name in node.input)
            limits = np.iinfo(zero.dtype)
            steps = np.rint(values / scale) + zero.astype(np.float32)
            stored[node.output[0]] = np.clip(steps, limits.min, limits.max).astype(zero.dtype)
        else:
            nodes.append(node)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in stored.items())
    tables = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    del graph.node[:]
    for node in nodes:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None:
            graph.node.append(node)
            continue
        rows = f"{node.output[0]} integers"
        graph.node.append(onnx.helper.make_node("Gather", [table.input[0], node.input[1]], [rows], f"{node.name} integers"))
        graph.node.append(onnx.helper.make_node("DequantizeLinear", [rows, *table.input[1:]], list(node.output), node.name))
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in graph.node if used & set(node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
