"""Compute the paper's architecture columns from a configuration; copy nothing from the paper."""

from __future__ import annotations

from collections.abc import Mapping

from mobilebert.modeling.cost import cost

_NORMS = {"layer_norm": "LayerNorm", "no_norm": "NoNorm"}
LENGTH = 128  # tokens of the paper's FLOPs and latency (section 4.5)


def facts(config: Mapping) -> dict:
    """Return the columns of Tables 1 to 4 and 7 for a "mobilebert" or "bert" configuration.

    parameters, mha and ffn are in millions, flops in 10^9 for one sequence of LENGTH tokens. Shapes
    are [in, out], [in, heads, out] and [in, hidden, out]; None if the model lacks that part.
    """
    length = min(LENGTH, config["max_position_embeddings"])
    figures = cost(config, length)
    hidden, heads, ffn = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    counts = {
        "parameters": figures.encoder / 1e6,
        "flops": figures.encoder_flops / 1e9,
        "mha": figures.mha / 1e6,
        "ffn": figures.ffn / 1e6,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": config["num_hidden_layers"],
        "activation": "gelu" if config["hidden_act"].startswith("gelu") else config["hidden_act"],
    }
    if config["model_type"] == "bert":
        return {
            **counts,
            "embedding_size": hidden,
            "embedding_op": "none",
            "intra_bottleneck_size": hidden,
            "linear_in": None,
            "mha_shape": [hidden, heads, hidden],
            "ffn_shape": [hidden, ffn, hidden],
            "num_feedforward_networks": 1,
            "linear_out": None,
            "norm": "LayerNorm",
        }
    inner = config["intra_bottleneck_size"]
    if config["use_bottleneck_attention"]:
        reads = inner
    elif config["key_query_shared_bottleneck"]:
        reads = f"{inner} (Q, K), {hidden} (V)"
    else:
        reads = hidden
    return {
        **counts,
        "embedding_size": config["embedding_size"],
        "embedding_op": "3-convolution" if config["trigram_input"] else "none",
        "intra_bottleneck_size": inner,
        "linear_in": [hidden, inner],
        "mha_shape": [reads, heads, inner],
        "ffn_shape": [inner, ffn, inner],
        "num_feedforward_networks": config["num_feedforward_networks"],
        "linear_out": [inner, hidden],
        "norm": _NORMS[config["normalization_type"]],
    }
