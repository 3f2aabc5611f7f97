"""Give the variables of TensorFlow's checkpoints the names that PyTorch's state dict has."""

from __future__ import annotations

import re

# A checkpoint also holds counters, the optimizers' slots, and ranges of fake quantization.
_TRAINING = re.compile(
    r"(?:^|/)(?:global_step|save_counter|optimizer|\.OPTIMIZER_SLOT|adam_[mv]|lamb_[mv]|Adam(?:_1)?"
    r"|AdamWeightDecayOptimizer\w*|LAMBOptimizer\w*|beta[12]_power|ExponentialMovingAverage"
    r"|\w*FakeQuantWithMinMaxVars\w*|_CHECKPOINTABLE_OBJECT_GRAPH)(?:/|:|$)"
)
_SCOPED = re.compile(r"(layer|ffn)_(?:layer_)?(\d+)$")
_LEAVES = {"gamma": "weight", "beta": "bias", "kernel": "weight", "output_bias": "bias", "output_weights": "weight"}
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def is_of_training(name: str) -> bool:
    """Return whether a variable is a counter, an optimizer's slot or a quantizer's range."""
    return bool(_TRAINING.search(name))


def from_google(name: str) -> tuple[str, bool] | None:
    """Return PyTorch's name of a variable of Google's code, and whether PyTorch transposes it.

    Return None for a variable that no class of this package has.
    """
    if name in ("output_weights", "output_bias"):  # the classifier of run_classifier.py
        return f"classifier.{_LEAVES[name]}", False
    if name.startswith("cls/squad/"):
        name = name.replace("cls/squad", "qa_outputs", 1)
    name = name.replace("FakeLayerNorm", "LayerNorm")
    if name == "cls/predictions/extra_output_weights":
        return "cls.predictions.dense.weight", True
    *scopes, leaf = name.split("/")
    if not scopes or scopes[0] not in ("bert", "cls", "qa_outputs"):
        return None
    words = ["mobilebert" if scope == "bert" else scope for scope in scopes]
    words = [word for scope in words for word in _SCOPED.sub(r"\1.\2", scope).split(".")]
    if leaf in _TABLES:
        return ".".join([*words, leaf, "weight"]), False
    if leaf not in _LEAVES and leaf != "bias":
        return None
    return ".".join([*words, _LEAVES.get(leaf, leaf)]), leaf == "kernel"


def from_keras(name: str) -> tuple[str, bool] | None:
    """Return PyTorch's name of a weight that transformers 4 wrote, and whether it is transposed.

    name: as "tf_mobile_bert_for_masked_lm/mobilebert/encoder/layer_._0/.../kernel:0". Return None
    for a name of another kind.
    """
    name = re.sub(r":\d+$", "", name)
    name = re.sub(r"[^/]*___([^/]*)/", r"\1/", name)  # "predictions___cls/" is the layer cls
    name = name.replace("_._", "/")
    *scopes, leaf = [word for word in name.split("/") if word]
    while scopes and scopes[0].startswith("tf_mobile_bert"):
        scopes = scopes[1:]
    if not scopes:
        return None
    if leaf in ("gamma", "kernel", "embeddings", "weight"):
        return ".".join([*scopes, "weight"]), leaf == "kernel"
    if leaf in ("beta", "bias"):
        return ".".join([*scopes, "bias"]), False
    return None
