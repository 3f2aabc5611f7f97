"""Read the configuration file of google-research/mobilebert."""

from __future__ import annotations

from collections.abc import Mapping

from mobilebert.util.errors import UserError, allowed

# Google's defaults, for keys that a file leaves out. transformers' defaults are the
# released student's, so they would turn the teacher into a model of 936,786,176 parameters.
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 16,
    "initializer_range": 0.02,
    "embedding_size": None,  # hidden_size
    "trigram_input": False,
    "use_bottleneck": False,
    "intra_bottleneck_size": None,  # hidden_size
    "use_bottleneck_attention": False,
    "key_query_shared_bottleneck": False,
    "num_feedforward_networks": 1,
    "normalization_type": "layer_norm",
    "classifier_activation": True,
}
_ACTIVATIONS = {"gelu": "gelu_new"}  # Google's is the tanh form
_MANUAL_EPS = 1e-6  # of its "manual_layer_norm"


def is_google(values: Mapping) -> bool:
    """Return whether the values of a JSON file are Google's, which name no model_type."""
    return "model_type" not in values and "vocab_size" in values and "hidden_size" in values


def from_google(values: Mapping, source: object) -> dict:
    """Return the fields of `MobileBertConfig` for the values of Google's file.

    Keys that the file leaves out get Google's defaults. Raises UserError for other keys.
    """
    if unknown := [key for key in values if key not in DEFAULTS and key != "vocab_size"]:
        raise UserError(f"{source}: {unknown[0]!r} is no key of google-research/mobilebert; {allowed(DEFAULTS, unknown[0])}")
    found = {**DEFAULTS, **values}
    for key in ("embedding_size", "intra_bottleneck_size"):
        found[key] = found["hidden_size"] if found[key] is None else found[key]
    if isinstance(found["hidden_act"], str):  # other types are refused with the configuration
        found["hidden_act"] = _ACTIVATIONS.get(found["hidden_act"], found["hidden_act"])
    if found["normalization_type"] == "manual_layer_norm":
        found |= {"normalization_type": "layer_norm", "layer_norm_eps": _MANUAL_EPS}
    if found["use_bottleneck_attention"]:  # Google's code then reads no shared bottleneck, and makes none
        found["key_query_shared_bottleneck"] = False
    return found | {"classifier_dropout": 0.1}  # fixed in its fine-tuning programs
