"""Run a .tflite file in LiteRT (once TensorFlow Lite) with its XNNPACK kernels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.deployment.engines.table import Engine, Kernel
from mobilebert.deployment.export import OUTPUTS
from mobilebert.util.errors import UserError, one_line

PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")


class LiteRtModel:
    """A .tflite file with fixed shapes.

    Inputs and outputs are found by a part of their names, as input_ids in "serving_input_ids:0". A
    single output may have any name: (batch, tokens, width) is last_hidden_state, (batch, labels)
    are logits.
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
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._named(self._interpreter.get_output_details())
        self.ran_with = {
            "program": f"ai-edge-litert {version('ai-edge-litert')}",
            "threads": threads,
            "precision": ", ".join(sorted({np.dtype(one["dtype"]).name for one in self._interpreter.get_tensor_details()})),
            "file": path.name,
            "delegated": any(op["op_name"] == "DELEGATE" for op in self._operations()),
        }

    def _named(self, found: list[dict]) -> dict[str, dict]:
        """Return the outputs by our names. Raises UserError for others."""
        if len(found) == 1:
            return {"last_hidden_state" if len(found[0]["shape"]) == 3 else "logits": found[0]}
        known = [name for group in OUTPUTS for name in group]
        named = {name: one for name in known for one in found if name in one["name"]}
        if len(named) != len(found):
            raise UserError(
                f"{self.path}: its outputs are {', '.join(one['name'] for one in found)}; known are {', '.join(known)}"
            )
        return named

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Raises UserError if the file takes other inputs."""
        for place in self._inputs:
            name = next((name for name in batch if name in place["name"]), None)
            if name is None:
                raise UserError(f"{self.path}: needs the input {place['name']}; given are {', '.join(batch)}")
            array = batch[name].astype(place["dtype"])
            if array.shape != tuple(place["shape"]):
                wanted, given = (" x ".join(map(str, shape)) for shape in (place["shape"], array.shape))
                raise UserError(f"{self.path}: is made for {wanted} tokens, not {given}; its shapes are fixed")
            self._interpreter.set_tensor(place["index"], array)
        self._interpreter.invoke()
        return {name: self._read(place) for name, place in self._outputs.items()}

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


def load(engine: Engine, source: Path, threads: int) -> LiteRtModel:
    """Return the file in LiteRT."""
    return LiteRtModel(source, threads)


def write(engine: Engine, source: object, path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Raise UserError: no file comes from the model; the user gives one."""
    raise UserError(
        f"litert: runs a .tflite file: give {engine.file} in the checkpoint's folder, or its path in place of a model"
    )
