"""Describe an 8-bit ONNX file: weight range, share of the FLOPs, dependence on the processor."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mobilebert.jobs.record import Quantization

if TYPE_CHECKING:
    import onnx

# ONNX Runtime's kernels for x86 without VNNI multiply uint8 activations by int8 weights with an
# instruction (vpmaddubsw) that adds two neighbouring products in 16 bits and stops at 32,767.
LARGEST_SUM = 32_767
# Node type -> positions of its two factors, activations and weights, among its inputs.
FACTORS = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "QGemm": (0, 3),
}
FLOAT_PRODUCTS = ("MatMul", "Gemm")  # 8-bit if both factors come from a DequantizeLinear: ONNX Runtime joins the nodes
UNCHANGED = ("DequantizeLinear", "Transpose", "Reshape", "Identity")  # their output holds the integers of their first input
# Linux's processor flags that decide how 8-bit products are computed, the fastest first.
INSTRUCTION_SETS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512bw", "avx2", "sse4_1", "i8mm", "asimddp", "asimd")
# Variables with which a user narrows the kernels of PyTorch and OpenVINO. ONNX Runtime has none.
LIMITS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
SATURATING = ("avx512bw", "avx2", "sse4_1", "unknown")


class Product(NamedTuple):
    """A matrix product of a graph.

    types: the types of activations and weights; None if they are not 8-bit.
    weights: None if they are not 8-bit, or if the second factor is not a constant.
    """

    node: onnx.NodeProto
    types: tuple[str, str] | None
    weights: np.ndarray | None

    @property
    def weight_range(self) -> tuple[int, int]:
        """Return the smallest and largest weight, or its type's range if it is not a constant."""
        if self.weights is None:
            assert self.types is not None
            limits = np.iinfo(self.types[1])
            return limits.min, limits.max
        return int(self.weights.min()), int(self.weights.max())

    @property
    def saturates(self) -> bool:
        """Return whether the sum of two neighbouring products can exceed 16 bits.

        Only uint8 times int8 is added in 16 bits. ONNX Runtime adds other pairs of types exactly on
        every processor.
        """
        if self.types != ("uint8", "int8"):
            return False
        return 255 * 2 * max(map(abs, self.weight_range)) > LARGEST_SUM


def products(model: onnx.ModelProto, folder: str = "") -> list[Product]:
    """Return the matrix products of a model, in the order of its nodes.

    folder: that of the model's external tensors.
    """
    import onnx

    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    constants |= {tensor.name: tensor for tensor in graph.initializer}
    codes = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    codes |= {name: tensor.data_type for name, tensor in constants.items()}

    def source(name: str) -> str:
        while name in made_by and made_by[name].op_type in UNCHANGED:
            name = made_by[name].input[0]
        return name

    def type_of(name: str, default: str) -> str:
        node = made_by.get(name)
        if node is not None and node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):  # input 2 of the former: zero point
            return type_of(node.input[2], "uint8") if len(node.input) > 2 else "uint8"
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(codes[name])).name if codes.get(name) else default

    found = []
    for node in graph.node:
        if node.op_type not in FACTORS:
            continue
        left, right = (source(node.input[place]) for place in FACTORS[node.op_type])
        unknown = ("float32", "float32") if node.op_type in FLOAT_PRODUCTS else ("uint8", "int8")
        pair = (type_of(left, unknown[0]), type_of(right, unknown[1]))
        if node.op_type == "DynamicQuantizeMatMul":  # the node itself quantizes its activations
            pair = ("uint8", pair[1])
        if set(pair) <= {"int8", "uint8"}:
            weights = onnx.numpy_helper.to_array(constants[right], folder) if right in constants else None
            found.append(Product(node, pair, weights))
        else:
            found.append(Product(node, None, None))
    return found


def int8_flops_share(model: onnx.ModelProto, length: int) -> float | None:
    """Return the share of the matrix products' FLOPs that is 8-bit, or None without products.

    The graph runs once, on a sequence of `length` ones, to find its shapes, because ONNX's shape
    inference fails on some exported graphs.
    """
    import onnx
    import onnxruntime

    counted = products(model)
    if not counted:
        return None
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    tensors = list(dict.fromkeys(name for item in counted for name in (item.node.input[0], item.node.output[0])))
    del probe.graph.output[:]
    for name in tensors:
        probe.graph.node.add(op_type="Shape", input=[name], output=[f"shape of {name}"])
        probe.graph.output.append(onnx.helper.make_tensor_value_info(f"shape of {name}", onnx.TensorProto.INT64, None))
    feed = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or (length if axis else 1) for axis, dim in enumerate(kind.shape.dim)]
        feed[value.name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shapes: dict[str, Any] = dict(zip(tensors, session.run(None, feed)))
    flops = {True: 0, False: 0}
    for item in counted:
        transposed = any(given.name == "transA" and given.i for given in item.node.attribute)
        inner = shapes[item.node.input[0]][-2 if transposed else -1]
        flops[item.types is not None] += 2 * int(np.prod(shapes[item.node.output[0]])) * int(inner)
    return flops[True] / sum(flops.values())


def describe(source: Path, target: Path, length: int, method: str = "dynamic") -> Quantization:
    """Return a record's description of `target`, an int8 ONNX file made from `source`.

    length: tokens of a sequence of the task; `int8_flops_share` is counted at this length. method:
    how activations are quantized, "dynamic" or "static". `scored_on` is this machine's processor.
    """
    import onnx
    import onnxruntime

    model = onnx.load(target)
    integer = [item for item in products(model) if item.types is not None]
    ranges = [item.weight_range for item in integer]
    return Quantization(
        method=method,
        engine=f"onnxruntime {onnxruntime.__version__}",
        weight_range=(min(low for low, _ in ranges), max(high for _, high in ranges)),
        activation_type=", ".join(sorted({item.types[0] for item in integer if item.types})),
        saturates=any(item.saturates for item in integer),
        scored_on=processor(),
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
        int8_flops_share=int8_flops_share(model, length),
    )


def processor(cpuinfo: str | None = None) -> dict[str, str]:
    """Return {"cpu": the processor's name, "isa": the first of INSTRUCTION_SETS that it has}.

    Those of LIMITS that are set are added, by name: kernels are then narrower than `isa`.
    cpuinfo: the text of a /proc/cpuinfo; None reads this machine's. If there is no such file, or if
    it lists none of INSTRUCTION_SETS, isa is "asimd" on 64-bit ARM and "unknown" elsewhere.
    """
    if cpuinfo is None:
        cpuinfo = ""
        with suppress(OSError):
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    facts = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = f"{facts.get('flags', '')} {facts.get('Features', '')}".split()  # x86, ARM
    other = "asimd" if platform.machine() in ("aarch64", "arm64") else "unknown"
    name = facts.get("model name") or platform.processor() or platform.machine()
    limits = {key: os.environ[key] for key in LIMITS if key in os.environ}
    return {"cpu": name, "isa": next((isa for isa in INSTRUCTION_SETS if isa in flags), other), **limits}


def dependence(path: Path, isa: str) -> str | None:
    """Return one line on why the scores of an ONNX file depend on the processor and what to do.

    isa: this processor's, from `processor`. Return None if the scores do not depend on it; if the
    processor computes a saturating file correctly (VNNI, AMX, ARM); or if the file is in ONNX
    Runtime's format, which `onnx` cannot read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if isa not in SATURATING:
        return None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return None
    found = [item.weight_range for item in products(model, str(path.parent)) if item.saturates]
    if not found:
        return None
    low, high = min(low for low, _ in found), max(high for _, high in found)
    return (
        f"{path}: its scores depend on the processor: weights from {low} to {high} can overflow 16-bit sums without VNNI "
        f"(here: {isa}); quantize again with weights from -64 to 64 (reduce_range=True of onnxruntime.quantization)"
    )
