"""Quantize a checkpoint to a .tflite file, and run the file on rows of any length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.deployment.engines.lite_rt import KINDS, PRODUCTS, LiteRtModel
from mobilebert.deployment.tflite import convert, fields_of, keras_classes


def write(way: str, kind: str, checkpoint: Path, path: Path, rows: list[dict[str, np.ndarray]], length: int) -> None:
    """Write the model in the folder `checkpoint` to `path` for rows of `length` tokens.

    kind: the name of the model's class. rows: batches of one row each; the full-integer file takes
    the ranges of activations from them. Raises UserError if TensorFlow cannot convert the model.
    """
    model = getattr(keras_classes(), f"TF{kind}").from_pretrained(checkpoint, **fields_of(KINDS[way]))
    convert(model, path, KINDS[way], [padded(row, length) for row in rows], length)


def float_model(way: str, model: Any, checkpoint: Path) -> Any:
    """Return the float32 model, in PyTorch and evaluation mode, that a way's file quantizes.

    model: of the class to build. checkpoint: the folder of its weights.
    """
    return type(model).from_pretrained(checkpoint, **fields_of(KINDS[way])).float().eval()


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
