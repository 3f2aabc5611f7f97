"""Quantize a checkpoint to a .tflite file, and run the file on rows of any length."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.deployment.engines.lite_rt import PRODUCTS, LiteRtModel
from mobilebert.util.errors import UserError, one_line

KINDS = {"litert-dynamic": "dynamic int8", "litert-int8": "int8"}  # way -> kind of `tf.export_tflite`


def write(way: str, kind: str, checkpoint: Path, path: Path, rows: list[dict[str, np.ndarray]], length: int) -> None:
    """Write the model in the folder `checkpoint` to `path` for rows of `length` tokens.

    kind: the name of the model's class. rows: batches of one row each; the full-integer file takes
    the ranges of activations from them. Its mask value is "-6": the larger values of the other
    files would leave the attention scores none of the 256 steps, but padded keys keep some weight.
    Raises UserError if TensorFlow cannot convert the model.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow logs its start
    from mobilebert import tf

    model = getattr(tf, f"TF{kind}").from_pretrained(checkpoint, **_changes(way))
    calibration = [padded(row, length) for row in rows] if KINDS[way] == "int8" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        tf.export_tflite(
            model,
            path,
            length,
            kind=KINDS[way],
            calibration=calibration,
            fold=model.config.normalization_type == "no_norm",
        )
    except UserError:
        raise
    except Exception as error:  # the converter raises exceptions of many kinds
        raise UserError(f"{path}: TensorFlow cannot convert the model ({one_line(error)})") from error


def _changes(way: str) -> dict[str, str]:
    """Return the fields of the configuration that the file changes."""
    return {"mask_value": "-6"} if KINDS[way] == "int8" else {}


def float_model(way: str, model: Any, checkpoint: Path) -> Any:
    """Return the float32 model, in PyTorch and evaluation mode, that a way's file quantizes.

    model: of the class to build. checkpoint: the folder of its weights.
    """
    return type(model).from_pretrained(checkpoint, **_changes(way)).float().eval()


def padded(row: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Return a batch, filled up to `length` tokens with masked zeros. Other keys stay."""
    tokens = row["input_ids"].shape[1]
    wide = ("input_ids", "attention_mask", "token_type_ids")
    return {name: np.pad(array, ((0, 0), (0, length - tokens))) if name in wide else array for name, array in row.items()}


def on_padded(forward: Callable, length: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return `forward` for rows of up to `length` tokens: it gets them padded.

    The outputs are those without padding. But padding acts on them: the last token's neighbour is
    [PAD], and padded keys may keep some weight.
    """

    def padded_forward(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = batch["input_ids"].shape[1]
        found = forward(padded(batch, length))
        return {name: array if name == "logits" else array[:, :tokens] for name, array in found.items()}

    return padded_forward


class PaddedModel(LiteRtModel):
    """A .tflite file for one length that takes shorter rows too: they are padded and masked."""

    def __init__(self, path: Path, length: int):
        super().__init__(path, 1)
        self._length = length

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, without those of padding."""
        return on_padded(super().__call__, self._length)(batch)

    def weight_range(self) -> tuple[int, int]:
        """Return the least and greatest integer among the weights of the products."""
        constants = {op["inputs"][1] for op in self._operations() if op["op_name"] in PRODUCTS}
        constants -= {index for op in self._operations() for index in op["outputs"]}
        types = {one["index"]: one["dtype"] for one in self._interpreter.get_tensor_details()}
        found = [self._interpreter.get_tensor(index) for index in constants if types[index] == np.int8]
        return min(int(one.min()) for one in found), max(int(one.max()) for one in found)
