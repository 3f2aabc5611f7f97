"""Run a .tflite file in LiteRT (once TensorFlow Lite) with its XNNPACK kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mobilebert.deployment.engines.table import Engine, Kernel
from mobilebert.deployment.export import INPUTS, OUTPUTS
from mobilebert.util.errors import UserError, one_line

PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")
KINDS = {"litert": "float32", "litert-dynamic": "dynamic int8", "litert-int8": "int8"}  # of `tf.export_tflite`


class LiteRtModel:
    """A .tflite file with fixed shapes.

    Inputs and outputs have the names of the file's first signature. In a file without one, an input
    is found by a part of its name, as input_ids in "serving_input_ids:0", and its only output is
    last_hidden_state (batch, tokens, width) or logits (batch, labels).
    """

    def __init__(self, path: Path, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        if not path.is_file():
            raise UserError(f"{path}: no such file; litert runs a .tflite file")
        self.path, self.bytes = path, path.stat().st_size
        try:
            self._interpreter: Any = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path}: no .tflite file that LiteRT can run ({one_line(error)})") from None
        if signatures := self._interpreter.get_signature_list():
            runner = self._interpreter.get_signature_runner(next(iter(signatures)))
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {_known(one["name"]): one for one in self._interpreter.get_input_details()}
            found = self._interpreter.get_output_details()
            outputs = {"last_hidden_state" if len(one["shape"]) == 3 else "logits": one for one in found}
        self._inputs: dict[str, dict] = inputs
        self._outputs = {name: one for name, one in outputs.items() if any(name in group for group in OUTPUTS)}
        if not self._outputs:
            raise UserError(f"{path}: its outputs are {', '.join(outputs)}; none is last_hidden_state or a head's logits")
        self.ran_with = {
            "program": f"ai-edge-litert {version('ai-edge-litert')}",
            "threads": threads,
            "precision": ", ".join(sorted({np.dtype(one["dtype"]).name for one in self._interpreter.get_tensor_details()})),
            "file": path.name,
            "delegated": any(op["op_name"] == "DELEGATE" for op in self._operations()),
        }

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Raises UserError if the file takes other inputs."""
        for name, place in self._inputs.items():
            if name not in batch:
                raise UserError(f"{self.path}: needs the input {name}; given are {', '.join(batch)}")
            array = batch[name].astype(place["dtype"])
            if array.shape != tuple(place["shape"]):
                wanted, given = (" x ".join(map(str, shape)) for shape in (place["shape"], array.shape))
                raise UserError(f"{self.path}: is made for {wanted} tokens, not {given}; its shapes are fixed")
            self._interpreter.set_tensor(place["index"], array)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise UserError(f"{self.path}: does not run in LiteRT ({one_line(error)})") from None
        return {name: self._read(place) for name, place in self._outputs.items()}

    def input_shapes(self) -> list[tuple[str, list[int]]]:
        """Return the name and the shape of each input, in the file's own order."""
        names = {place["index"]: name for name, place in self._inputs.items()}
        return [(names[one["index"]], [int(size) for size in one["shape"]]) for one in self._interpreter.get_input_details()]

    def _read(self, place: dict) -> np.ndarray:
        found = self._interpreter.get_tensor(place["index"]).astype(np.float32)
        scale, zero = place["quantization"]
        return (found - zero) * np.float32(scale) if scale else found

    def _operations(self) -> list[dict]:
        return self._interpreter._get_ops_details()  # there is no public list of the operators

    def kernels(self, batch: Mapping[str, np.ndarray]) -> list[Kernel]:
        """Return the file's operators, without times.

        XNNPACK takes over those that it can, in the precision of their tensors.
        """
        tensors = {one["index"]: one for one in self._interpreter.get_tensor_details()}
        found = []
        for op in self._operations():
            name = op["op_name"]
            if name == "DELEGATE":
                continue
            flops, is_int8 = 0, False
            if name in PRODUCTS:
                left, right = (tensors[index] for index in op["inputs"][:2])
                flops = 2 * int(np.prod(tensors[op["outputs"][0]]["shape"])) * int(left["shape"][-1])
                is_int8 = right["dtype"] == np.int8  # XNNPACK quantizes a float left factor at run time
            found.append(Kernel(name, is_int8, flops, None))
        return found


def _known(name: str) -> str:
    """Return our name of an input, the input's own if it holds none of ours."""
    return next((one for one in INPUTS if one in name), name)


def load(engine: Engine, source: Path, threads: int) -> LiteRtModel:
    """Return the file in LiteRT."""
    return LiteRtModel(source, threads)


def write(engine: Engine, source: PreTrainedModel, path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the engine's .tflite file for the shape of `rows`.

    Raises UserError if TensorFlow, which converts the model, is not installed or cannot convert it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{engine.name}: needs a .tflite file; put {engine.file} in the checkpoint's folder, give its path in place of a "
            "model, or let TensorFlow write it: pip install '.[workflow,deploy,tensorflow,litert]'"
        )
    from mobilebert.deployment.tflite import write_tflite

    write_tflite(source, path, KINDS[engine.name], rows)
