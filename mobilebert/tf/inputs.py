"""Bring the inputs of a model into one form, check them, and build the attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from mobilebert.util.errors import UserError, allowed

NAMES = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "head_mask", "inputs_embeds")
IDS = ("input_ids", "token_type_ids", "position_ids")


class InputError(UserError, ValueError):
    """An input that the models do not take."""

    _keras_call_info_injected = True  # else Keras puts a list of all arguments around the line


def arrays_of(first: Any) -> Any:
    """Return a model's first input in a form that Keras passes on: tensors, or a dict of them.

    first: also what a tokenizer returns, and lists of numbers.
    Raises InputError for rows of different lengths.
    """
    if isinstance(first, Mapping):
        return {name: _array(name, value) if isinstance(value, list | tuple) else value for name, value in first.items()}
    if isinstance(first, list | tuple) and not any(hasattr(part, "shape") for part in first):
        return _array("input_ids", first)
    return first


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{name}: rows of different lengths; pad them to one length") from None


def gathered(input_ids: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Return all inputs by name, as tensors.

    input_ids: as in transformers, the ids, a mapping with any of the inputs, or a list or tuple of
        inputs in the order of `NAMES`.
    Raises InputError for a name that the model does not take, and for an input that is given twice.
    """
    if isinstance(input_ids, Mapping):
        first = dict(input_ids)
        if unknown := [key for key in first if key not in named and key != "input_ids"]:
            raise InputError(f"inputs: {unknown[0]!r} is unknown; {allowed(('input_ids', *named), unknown[0])}")
    elif isinstance(input_ids, list | tuple) and input_ids and hasattr(input_ids[0], "shape"):
        first = dict(zip(NAMES, input_ids))
    else:
        first = {"input_ids": input_ids}
    twice = [key for key, value in first.items() if value is not None and named.get(key) is not None]
    if twice:
        raise InputError(f"{twice[0]}: given twice")
    found = {"input_ids": None} | named | {key: value for key, value in first.items() if value is not None}
    return {key: _tensor(key, value) for key, value in found.items()}


def _tensor(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int) or name.startswith(("output_", "return_")):
        return value
    value = value if tf.is_tensor(value) else tf.convert_to_tensor(_array(name, value))
    if name in IDS:
        if not value.dtype.is_integer:  # Keras passes ids on as floats if the model's caller had floats
            raise InputError(f"{name}: {value.dtype.name}; ids must be integers")
        if value.dtype not in (tf.int32, tf.int64):  # a lookup takes no others
            return tf.cast(value, tf.int64 if value.dtype.size >= 4 else tf.int32)
    return value


def check_shape(input_ids: Any, inputs_embeds: Any, dimensions: tuple[str, ...] = ("batch", "tokens")) -> None:
    """Raise InputError unless exactly one input is given, with these dimensions, each at least 1.

    `inputs_embeds` has one dimension more, embedding_size.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give input_ids or inputs_embeds, and not both")
    name, given = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    wanted = dimensions if inputs_embeds is None else (*dimensions, "embedding_size")
    if len(given.shape) != len(wanted) or 0 in given.shape:
        raise InputError(f"{name}: shape {tuple(given.shape)}; wanted is ({', '.join(wanted)}), each at least 1")


def check_tokens(first: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any) -> None:
    """Raise InputError for an input whose tokens or rows are not as many as those of the first.

    first: (batch, tokens) or (batch, tokens, width). A single row serves for all.
    """
    batch, tokens = first.shape[:2]
    for name, given in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if given is None or len(given.shape) not in (1, 2):
            continue
        rows = given.shape[0] if len(given.shape) == 2 else 1
        if not (_may_equal(given.shape[-1], tokens) and (rows == 1 or _may_equal(rows, batch))):
            wanted = (batch or "any", tokens or "any")
            raise InputError(f"{name}: shape {tuple(given.shape)}; the input has {wanted[0]} rows of {wanted[1]} tokens")


def _may_equal(length: int | None, other: int | None) -> bool:
    """Return whether two lengths are equal, or one is not known yet."""
    return length is None or other is None or length == other


def refuse_ids(embeddings: Any, input_ids: Any, token_type_ids: Any, position_ids: Any) -> None:
    """Raise InputError for the first of the three inputs that has an id outside its table."""
    for name, ids, table in (
        ("input_ids", input_ids, embeddings.word_embeddings),
        ("token_type_ids", token_type_ids, embeddings.token_type_embeddings),
        ("position_ids", position_ids, embeddings.position_embeddings),
    ):
        if ids is not None and not 0 <= int(tf.reduce_min(ids)) <= int(tf.reduce_max(ids)) < table.rows:
            low, high = int(tf.reduce_min(ids)), int(tf.reduce_max(ids))
            raise InputError(f"{name}: ids from {low} to {high}; allowed are 0 to {table.rows - 1}")


def additive_mask(attention_mask: Any, dtype: Any, mask_value: str = "min") -> Any:
    """Return a mask to add to attention scores: 0 if attended, else `mask_value`.

    The arguments, and what is refused, are those of `mobilebert.modeling.inputs.additive_mask`.
    """
    if attention_mask is None:
        return None
    if len(attention_mask.shape) == 4:
        if mask_value == "-6" and attention_mask.shape[2] != 1:
            raise InputError('attention_mask: mask_value "-6" takes only masks of keys: (batch, keys) or (batch, 1, 1, keys)')
        if attention_mask.dtype != tf.bool:
            if not attention_mask.dtype.is_floating:  # added to the scores, its 0 and 1 would mask nothing
                raise InputError(
                    f"attention_mask: 4 dimensions of {attention_mask.dtype.name}; allowed are bool, or floats to add"
                )
            return tf.cast(attention_mask, dtype)
        attends = attention_mask
    elif len(attention_mask.shape) == 2:
        attends = tf.cast(attention_mask, tf.bool)[:, None, None, :]
    else:
        raise InputError(f"attention_mask: {len(attention_mask.shape)} dimensions; allowed are 2 or 4")
    value = tf.as_dtype(dtype).min if mask_value == "min" else float(mask_value)
    return tf.where(attends, tf.zeros((), dtype), tf.constant(value, dtype))
