"""Write a Keras model as a TensorFlow Lite file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from mobilebert.tf.folding import folded_model
from mobilebert.tf.model import TFMobileBertPreTrainedModel
from mobilebert.tf.tasks import TFMobileBertForMultipleChoice
from mobilebert.tf.weights import load_state_dict, state_dict
from mobilebert.util.errors import UserError, allowed
from mobilebert.util.files import write_atomically

KINDS = ("float32", "float16", "dynamic int8", "int8")
SIGNATURE = "serving_default"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export_tflite(
    model: TFMobileBertPreTrainedModel,
    path: str | os.PathLike,
    length: int,
    batch: int = 1,
    kind: str = "float32",
    calibration: Iterable[Mapping[str, Any]] | None = None,
    fold: bool = False,
) -> None:
    """Write a model for one shape of input as a .tflite file.

    The file has the signature `serving_default`: input_ids, attention_mask and token_type_ids,
    int32 of (batch, length), and the model's outputs by name. It computes in float32 also if the
    model's dtype policy is another.
    kind: float32; float16 or dynamic int8 (8-bit weights, computed with in float32 where the
        device has no 8-bit product); int8 (weights and activations, with calibration; the
        configuration's mask_value must be "-6").
    calibration: for int8, inputs of the model whose ranges are measured; (batch, length) each.
    fold: write the folded model, which has fewer operations and the same outputs to rounding.
    Raises UserError for arguments that contradict each other or the model.
    """
    if kind not in KINDS:
        raise UserError(f"kind: {kind!r} is unknown; {allowed(KINDS, kind)}")
    if (kind == "int8") != (calibration is not None):
        raise UserError("calibration: kind int8 needs inputs to measure ranges on, and the other kinds take none")
    if kind == "int8" and model.config.mask_value != "-6":
        raise UserError(
            f"mask_value: {model.config.mask_value!r} leaves the scores none of the 256 steps of int8; "
            'load the model with mask_value="-6"'
        )
    longest = model.config.max_position_embeddings
    if not 1 <= length <= longest or batch < 1:
        raise UserError(f"length, batch: {length}, {batch}; allowed are lengths of 1 to {longest}, batches of at least 1")
    if isinstance(model, TFMobileBertForMultipleChoice):
        raise UserError("export_tflite: a model of multiple choice has no fixed number of choices; export its encoder")
    run = _in_float32(model)
    if fold:
        run = folded_model(run)

    inputs = [tf.TensorSpec((batch, length), tf.int32, name=name) for name in INPUTS]

    @tf.function(input_signature=inputs)
    def call(input_ids, attention_mask, token_type_ids):
        outputs = run(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, training=False)
        return {name: value for name, value in outputs.items() if tf.is_tensor(value)}

    concrete = call.get_concrete_function()
    names = sorted(concrete.structured_outputs)  # the order in which TensorFlow flattens a dictionary
    # With weights as constants: the converter leaves Keras's variables in the file, which then
    # cannot be run.
    frozen = convert_variables_to_constants_v2(concrete)
    served: Any = tf.Module()
    served.serve = tf.function(lambda *given: dict(zip(names, frozen(*given))), input_signature=inputs)
    with tempfile.TemporaryDirectory(prefix="mobilebert-") as folder:
        tf.saved_model.save(served, folder, signatures={SIGNATURE: served.serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if calibration is not None:
            # Attention's own products head by head: LiteRT has a fast int8 kernel for each, but for
            # a batch of them only the reference, which took half of the file's time.
            converter.unfold_batchmatmul = True
            converter.representative_dataset = lambda: _samples(calibration, (batch, length))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        content = converter.convert()
    if calibration is not None:
        content = _without_inner_names(content)
    write_atomically(Path(path), content)


def _without_inner_names(content: bytes) -> bytes:
    """Return a file whose tensors have no names, but for inputs and outputs.

    A product of one head is named after those of all heads and rows. With a batch of 8 and 12 heads
    the names were 13.5 of 13.9 MB of a small BERT.
    """
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for graph in file.subgraphs:
        ends = {*graph.inputs, *graph.outputs}
        for place, tensor in enumerate(graph.tensors):
            if place not in ends:
                tensor.name = b""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(file))


def _in_float32(model: TFMobileBertPreTrainedModel) -> TFMobileBertPreTrainedModel:
    """Return a model that computes in float32: TensorFlow Lite has no bfloat16 operations."""
    if model.dtype_policy.name == "float32":
        return model
    copy = type(model).from_config(model.get_config() | {"dtype": "float32"})
    load_state_dict(copy, state_dict(model))
    return copy


def _samples(calibration: Iterable[Mapping[str, Any]], shape: tuple[int, int]):
    """Yield the inputs with all three names. Raises UserError for another shape, and for none."""
    count = 0
    for inputs in calibration:
        found = {name: np.asarray(inputs[name], np.int32) for name in INPUTS if name in inputs}
        ids = found.get("input_ids")
        if ids is None or any(array.shape != shape for array in found.values()):
            raise UserError(f"calibration: each sample must have input_ids, and arrays of shape {shape}")
        count += 1
        yield SIGNATURE, {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)} | found
    if not count:
        raise UserError("calibration: no samples")
