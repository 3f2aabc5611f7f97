"""Read the paper's named models as plain dictionaries, without torch or transformers."""

import difflib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypeGuard

from mobilebert.util.errors import UserError

FOLDER = Path(__file__).parents[1] / "paper" / "presets"
ACTIVATIONS = ("relu", "relu6", "gelu", "gelu_new")
NORMS = ("no_norm", "layer_norm")
MASK_VALUES = ("min", "-10000", "-6")
# Fields that a task adds to a preset. They describe the fine-tuning head; no preset file has them.
TASK_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_MOBILEBERT_SIZES = ("embedding_size", "intra_bottleneck_size", "num_feedforward_networks")
_SWITCHES = (
    "trigram_input",
    "use_bottleneck",
    "use_bottleneck_attention",
    "key_query_shared_bottleneck",
    "classifier_activation",
)
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def names() -> list[str]:
    """Return the presets' names, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def _read(name: str) -> str:
    return (FOLDER / f"{name}.json").read_text(encoding="utf-8")


def preset(name: str, **overrides) -> dict:
    """Return the fields of preset `name`, changed by `overrides` and checked.

    Raises UserError for an unknown preset, an override that is neither a field of that preset nor
    one of TASK_FIELDS, and for values that `check` refuses.
    """
    if name not in names():
        raise UserError(f"preset {name!r} is unknown: choose one of {', '.join(names())}")
    fields = json.loads(_read(name))
    allowed = [key for key in fields if key != "model_type"] + list(TASK_FIELDS)
    for key in overrides:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
            raise UserError(f"preset {name}: unknown key {key!r}; {hint}")
    fields.update(overrides)
    check(fields)
    if fields.get("use_bottleneck_attention") and fields.get("key_query_shared_bottleneck"):
        # transformers' default for the second key builds 24 bottlenecks that nothing reads (1.8M
        # parameters).
        raise UserError(
            "key_query_shared_bottleneck: must be false if use_bottleneck_attention is true, "
            "because query and key then read the block's input bottleneck"
        )
    return fields


def check(fields: Mapping) -> None:
    """Raise UserError, in one line, for values from which no model can be built.

    fields: a "mobilebert" or "bert" configuration. Refused are sizes that are not positive
    integers, a head count that does not divide the attention width, an unknown activation, norm or
    mask_value, switches that are not booleans, dropout rates outside [0, 1), initial scales that
    are not positive and finite, a pad_token_id outside the vocabulary, and embeddings wider than
    the block input.
    """
    mobilebert = fields["model_type"] == "mobilebert"
    for key in _SIZES + (_MOBILEBERT_SIZES if mobilebert else ()):
        value = fields[key]
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{key}: {value!r} is not a positive integer")
    for key in _RATES:
        value = fields[key]
        if value is None and key == "classifier_dropout":
            continue
        if not _is_number(value) or not 0 <= value < 1:
            raise UserError(f"{key}: {value!r} is not a rate from 0 up to, not including, 1")
    for key in ("initializer_range", "layer_norm_eps") + (("residual_init_scale",) if mobilebert else ()):
        if not _is_number(fields[key]) or not 0 < fields[key] < math.inf:  # nor NaN
            raise UserError(f"{key}: {fields[key]!r} is not a positive number")
    pad = fields["pad_token_id"]
    if pad is not None and (type(pad) is not int or not 0 <= pad < fields["vocab_size"]):
        raise UserError(f"pad_token_id: {pad!r} is no token of a vocabulary of {fields['vocab_size']}")
    if fields["hidden_act"] not in ACTIVATIONS:
        raise UserError(f"hidden_act: {fields['hidden_act']!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")
    width_key = "hidden_size"
    if mobilebert:
        for key in _SWITCHES:
            if not isinstance(fields[key], bool):
                raise UserError(f"{key}: {fields[key]!r} is neither true nor false")
        if fields["normalization_type"] not in NORMS:
            raise UserError(f"normalization_type: {fields['normalization_type']!r} is unknown: choose one of {', '.join(NORMS)}")
        if fields["mask_value"] not in MASK_VALUES:
            allowed = ", ".join(f'"{value}"' for value in MASK_VALUES)
            raise UserError(f"mask_value: {fields['mask_value']!r} is unknown: choose one of {allowed}")
        if fields["embedding_size"] > fields["hidden_size"]:
            # The output matrix is the embedding table and hidden_size - embedding_size new columns.
            raise UserError(f"embedding_size: {fields['embedding_size']} is larger than hidden_size, {fields['hidden_size']}")
        if fields["use_bottleneck"]:
            width_key = "intra_bottleneck_size"
    if fields[width_key] % fields["num_attention_heads"]:
        raise UserError(f"num_attention_heads: {fields['num_attention_heads']} does not divide {width_key}, {fields[width_key]}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
