"""Quantize a checkpoint to a .tflite file, and run the file on rows of any length."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

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

    is_integer = KINDS[way] == "int8"
    model = getattr(tf, f"TF{kind}").from_pretrained(checkpoint, **({"mask_value": "-6"} if is_integer else {}))
    calibration = [padded(row, length) for row in rows] if is_integer else None
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


def padded(row: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Return a batch, filled up to `length` tokens with masked zeros. Other keys stay."""
    tokens = row["input_ids"].shape[1]
    wide = ("input_ids", "attention_mask", "token_type_ids")
    return {name: np.pad(array, ((0, 0), (0, length - tokens))) if name in wide else array for name, array in row.items()}


class PaddedModel(LiteRtModel):
    """A .tflite file for one length that takes shorter rows too: they are padded and masked."""

    def __init__(self, path: Path, length: int):
        super().__init__(path, 1)
        self._length = length

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, without those of padding."""
        tokens = batch["input_ids"].shape[1]
        found = super().__call__(padded(batch, self._length))
        return {name: array if name == "logits" else array[:, :tokens] for name, array in found.items()}

    def weight_range(self) -> tuple[int, int]:
        """Return the least and greatest integer among the weights of the products."""
        constants = {op["inputs"][1] for op in self._operations() if op["op_name"] in PRODUCTS}
        constants -= {index for op in self._operations() for index in op["outputs"]}
        types = {one["index"]: one["dtype"] for one in self._interpreter.get_tensor_details()}
        found = [self._interpreter.get_tensor(index) for index in constants if types[index] == np.int8]
        return min(int(one.min()) for one in found), max(int(one.max()) for one in found)
