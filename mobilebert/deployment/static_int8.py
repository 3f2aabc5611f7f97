"""Quantize an ONNX file to 8 bits with ranges of activations that are fixed in advance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobilebert.deployment.quantize import prepared
from mobilebert.util.errors import UserError
from mobilebert.util.files import settle

if TYPE_CHECKING:
    import onnx


def quantize_static(source: Path, target: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the model in `source` to `target` with int8 weights and uint8 activations.

    rows: batches of inputs. The model runs on them, and the least and greatest value of each
    activation are its range from then on. Products with a weight are quantized, and tables that
    are looked up. Products of two activations (the attention scores) stay float32. Weights are
    from -64 to 64, for the reason that `quantize_int8` gives.

    The file appears under its name only when it is complete. Raises UserError without rows, if
    `source` is not an ONNX model, and for a full disk.
    """
    if not rows:
        raise UserError(f"{target}: no rows to calibrate on; the ranges of the activations come from at least one batch")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Rows(CalibrationDataReader):
        def __init__(self, names: set[str]):
            self._left = iter([{name: np.asarray(row[name], np.int64) for name in names} for row in rows])

        def get_next(self):
            return next(self._left, None)

    target.parent.mkdir(parents=True, exist_ok=True)
    with prepared(source, target) as folder:
        try:
            model = onnx.load(folder / "prepared.onnx")
            split_gemms(model)
            onnx.save(model, folder / "split.onnx")
            constants = {tensor.name for tensor in model.graph.initializer}
            chosen = [
                node.name
                for node in model.graph.node
                if (node.op_type == "MatMul" and node.input[1] in constants)
                or (node.op_type == "Gather" and _is_table(node, model))
            ]
            quantize(
                folder / "split.onnx",
                folder / "int8.onnx",
                Rows({value.name for value in model.graph.input}),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gather"],
                nodes_to_quantize=chosen,
                activation_type=QuantType.QUInt8,  # signed ones are about 3 times slower on x86
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
            settle(folder / "int8.onnx", target)
        except Exception as error:  # a full disk raises OSError, or an exception of protobuf or ONNX Runtime
            raise UserError(f"{target}: cannot be written ({' '.join(str(error).split())[:200]})") from error


def split_gemms(model: onnx.ModelProto) -> None:
    """Write every Gemm of a graph as MatMul and Add, in place.

    ONNX Runtime joins a quantized MatMul with its quantizers. It does not join a Gemm whose third
    input is an activation, such as the residual stream of a folded model: that one would run in
    float32, although the file looks quantized.
    """
    import onnx

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = not given.get("transA") and given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not plain or node.input[1] not in constants:
            graph.node.append(node)
            continue
        weight = node.input[1]
        if given.get("transB"):
            weight = f"{weight} transposed"
            if weight not in constants:
                turned = np.ascontiguousarray(onnx.numpy_helper.to_array(constants[node.input[1]]).T)
                constants[weight] = onnx.numpy_helper.from_array(turned, weight)
                graph.initializer.append(constants[weight])
        product = f"{node.output[0]} product" if len(node.input) > 2 else node.output[0]
        graph.node.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], f"{node.name} product"))
        if len(node.input) > 2:
            graph.node.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name} sum"))
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _is_table(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Return whether a Gather looks up rows of a constant matrix."""
    return any(tensor.name == node.input[0] and len(tensor.dims) == 2 for tensor in model.graph.initializer)
