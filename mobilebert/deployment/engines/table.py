"""List the engines that run a model: what each needs, and how far its output may be from PyTorch's.

Importing this module imports no engine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mobilebert.util.errors import UserError, allowed

# Largest |output - reference| / |reference| (2-norms) of an engine. float32 kernels that sum in
# another order differ by 1e-6; int8 weights by 0.01 to 0.03 on random models; other weights by
# about 1.
FLOAT, BF16, INT8 = 1e-3, 0.05, 0.1
# An int8 engine that fixes the ranges of activations in advance is further from float32: 0.04 for
# BERT_BASE and 0.09 for MobileBERT in OpenVINO (drawn weights, 128 tokens).
INT8_FIXED_RANGES = 0.2
# LiteRT's full int8 has 8 bits between all operations, inside LayerNorm and softmax too. With drawn
# weights and 128 tokens it is 0.03 away for NoNorm, 0.11 for LayerNorm and BERT_BASE; a model with
# a few far larger channels was 0.63 away. Other weights are 1.4 away.
INT8_EVERYWHERE = 0.8


class Kernel(NamedTuple):
    """An operation that an engine ran.

    op: the engine's own name of the operation.
    is_int8: whether it is a matrix product of 8-bit factors.
    flops: 2 x multiply-accumulates; 0 for all but matrix products.
    us: microseconds, with the engine's own clock; None if it has none.
    """

    op: str
    is_int8: bool
    flops: int
    us: float | None


class Loaded(Protocol):
    """A model that an engine holds in memory."""

    bytes: int | None  # of the file; None if the engine reads no file
    ran_with: dict[str, Any]  # program with its version, threads, precision, and the engine's own

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name: last_hidden_state, or those of a head, float32."""
        ...

    def kernels(self, batch: Mapping[str, np.ndarray]) -> list[Kernel] | None:
        """Return what runs in one forward pass, in its order; None if the engine cannot tell."""
        ...


@dataclass(frozen=True)
class Engine:
    """A way to run a model.

    program: the module of this folder that runs it; see `programs`.
    file: name of the file that the engine reads, "" if none. Engines may share a file.
    made_from: the engine from whose file this engine's file is made.
    packages: what the engine imports, beyond the packages of the training core.
    extra: the extra of pyproject.toml that has these packages.
    """

    name: str
    does: str
    program: str
    tolerance: float
    file: str = ""
    made_from: str | None = None
    packages: tuple[str, ...] = ()
    extra: str = ""

    def check_installed(self) -> None:
        """Raise UserError, with the command that installs it, if a package is missing."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                name = package.replace("_", "-")
                raise UserError(f"{self.name}: {name} is not installed; it comes with: pip install '.[{self.extra}]'")


_ONNX: dict[str, Any] = {"program": "onnx_runtime", "packages": ("onnxruntime", "onnx"), "extra": "deploy"}
_OPENVINO: dict[str, Any] = {"program": "open_vino", "packages": ("openvino", "onnx"), "extra": "deploy,openvino"}
_NNCF: dict[str, Any] = {**_OPENVINO, "packages": ("openvino", "onnx", "nncf")}
_LITERT: dict[str, Any] = {"program": "lite_rt", "packages": ("ai_edge_litert",), "extra": "litert"}
_ALL = (
    Engine("pytorch", "PyTorch, eager, float32", "pytorch", FLOAT),
    Engine("pytorch-folded", "PyTorch, eager, float32, norms folded into the weights", "pytorch", FLOAT),
    Engine("pytorch-compiled", "PyTorch, torch.compile, float32, norms folded", "pytorch", FLOAT),
    Engine("pytorch-cuda", "PyTorch on an NVIDIA GPU, eager, float32, norms folded", "pytorch", FLOAT),
    Engine("onnxruntime", "ONNX Runtime, float32", tolerance=FLOAT, file="model.onnx", **_ONNX),
    Engine(
        "onnxruntime-int8",
        "ONNX Runtime, int8, activations quantized at run time",
        tolerance=INT8,
        file="model-int8.onnx",
        made_from="onnxruntime",
        **_ONNX,
    ),
    Engine(
        "onnxruntime-fixed",
        "ONNX Runtime, float32, optimized for one shape of input",
        tolerance=FLOAT,
        file="model.onnx",
        **_ONNX,
    ),
    Engine(
        "onnxruntime-int8-fixed",
        "ONNX Runtime, int8 as onnxruntime-int8, optimized for one shape of input",
        tolerance=INT8,
        file="model-int8.onnx",
        made_from="onnxruntime",
        **_ONNX,
    ),
    Engine(
        "onnxruntime-static",
        "ONNX Runtime, int8, ranges of activations fixed in advance",
        tolerance=INT8_FIXED_RANGES,
        file="model-static.onnx",
        made_from="onnxruntime",
        **_ONNX,
    ),
    Engine("openvino", "OpenVINO, float32", tolerance=FLOAT, file="model.onnx", **_OPENVINO),
    Engine(
        "openvino-fixed", "OpenVINO, float32, compiled for one shape of input", tolerance=FLOAT, file="model.onnx", **_OPENVINO
    ),
    Engine(
        "openvino-bf16", "OpenVINO, bfloat16 (processors with AMX or AVX512-BF16)", tolerance=BF16, file="model.onnx", **_OPENVINO
    ),
    Engine(
        "openvino-int8",
        "OpenVINO, int8 through NNCF, ranges of activations fixed in advance",
        tolerance=INT8_FIXED_RANGES,
        file="model-nncf.xml",
        made_from="onnxruntime",
        **_NNCF,
    ),
    Engine("litert", "LiteRT (TensorFlow Lite) with XNNPACK, float32", tolerance=FLOAT, file="model.tflite", **_LITERT),
    Engine(
        "litert-dynamic",
        "LiteRT, int8 weights, activations quantized at run time",
        tolerance=INT8,
        file="model-dynamic.tflite",
        **_LITERT,
    ),
    Engine(
        "litert-int8",
        "LiteRT, int8, all operations and all ranges fixed in advance",
        tolerance=INT8_EVERYWHERE,
        file="model-int8.tflite",
        **_LITERT,
    ),
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in _ALL}


def engine_named(name: str) -> Engine:
    """Return the engine. Raises UserError for an unknown name."""
    if name not in ENGINES:
        raise UserError(f"engine: {name!r} is unknown; {allowed(ENGINES, name)}")
    return ENGINES[name]


def int8_flops(kernels: Iterable[Kernel]) -> tuple[int, int]:
    """Return the FLOPs of 8-bit matrix products, and of all that the engine lists as products."""
    counted = list(kernels)
    return sum(kernel.flops for kernel in counted if kernel.is_int8), sum(kernel.flops for kernel in counted)


def int8_share(found: tuple[int, int], flops: int | None) -> float | None:
    """Return the share of the matrix products' FLOPs that ran in 8 bits; None if none are known.

    found: from `int8_flops`. flops: of the model in PyTorch. The whole is the larger of `flops` and
    the engine's own sum: an engine hides products in fused operators, and a .tflite file that was
    given may hold another fold, with a few more.
    """
    whole = max(found[1], flops or 0)
    return found[0] / whole if whole else None


def owners(kernels: Iterable[Kernel]) -> list[tuple[str, int, float]]:
    """Return (operation, calls, microseconds), the slowest first; [] without a clock."""
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        if kernel.us is not None:
            found.setdefault(f"{kernel.op} (int8)" if kernel.is_int8 else kernel.op, []).append(kernel.us)
    return sorted(((op, len(times), sum(times)) for op, times in found.items()), key=lambda owner: -owner[2])
