"""Parameters, FLOPs, kernels and memory of a configuration, by arithmetic: nothing is built, no torch is needed.

A FLOP count is 2 x multiply-accumulates of the matrix products (embedding transformation, bottlenecks, projections,
attention scores and contexts, FFNs); norms, activations and softmax are left out, as in the paper's Table 4.

A kernel is an operation of eager PyTorch that computes, in inference and without padding: a matrix product with its bias,
an addition, a norm, an activation, a fused attention, a lookup. Views and idle dropout are none.

Memory is of tensors, without what the allocator and the kernels use beside them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mobilebert import paper
from mobilebert.modeling.presets import names, preset
from mobilebert.util.errors import UserError, allowed, shown

MASK_RATE = 0.15  # share of tokens with an MLM target (Devlin et al. 2019)

# (parameters in M of Table 1, FLOPs in G of Table 4), both as printed there; None where the paper has no such row.
PUBLISHED = {
    "bert-large": (334, None),
    "bert-base": (109, 22.5),
    "ib-bert-large": (293, None),
    "mobilebert": (25.3, 5.7),
    "mobilebert-table1": (25.3, 5.7),
    "mobilebert-no-opt": (25.3, 5.7),
    "mobilebert-tiny": (15.1, 3.1),
}


@dataclass(frozen=True)
class Cost:
    """Parameters by part; FLOPs, kernels and activations of one sequence of `seq` tokens.

    Blocks: `mha`, `ffn` and `bottlenecks` are weight matrices (the columns of Table 3), their biases are `biases`.
    `embeddings` are the tables and the transformation with its bias; `norms` holds every norm of encoder and
    embeddings. `mlm_head` counts the decoder's tied columns with the embeddings, so not again.

    folded_kernels: after `modeling.folding.fold`; None where it does not apply.
    activation_bytes: the most that lives at once in float32 inference of embeddings and encoder.
    saved_bytes_per_token: what float32 training keeps for the backward pass, with logits for MASK_RATE of the tokens,
        fused attention and no dropout masks. Gradients in flight and the logits themselves come on top.
    """

    seq: int
    embeddings: int
    mha: int
    ffn: int
    bottlenecks: int
    norms: int
    biases: int
    pooler: int
    mlm_head: int
    nsp_head: int
    encoder_flops: int
    mlm_flops_per_prediction: int
    kernels: int
    folded_kernels: int | None
    activation_bytes: int
    saved_bytes_per_token: float

    @property
    def encoder(self) -> int:
        """Parameters of embeddings and encoder, without pooler and heads: the total that the paper's tables give."""
        return self.embeddings + self.mha + self.ffn + self.bottlenecks + self.norms + self.biases

    @property
    def parameters(self) -> int:
        """Those of the pre-training model: encoder, pooler and both heads."""
        return self.encoder + self.pooler + self.mlm_head + self.nsp_head

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Of embeddings and encoder; int8: matrices and tables (`embeddings`, `mha`, `ffn`, `bottlenecks`) in one byte."""
        rest = self.norms + self.biases
        return {"fp32": 4 * self.encoder, "bf16": 2 * self.encoder, "int8": self.encoder + 3 * rest}

    @property
    def training_state_bytes(self) -> int:
        """Weights, gradients and the two moments of LAMB or AdamW of the pre-training model, four bytes each."""
        return 16 * self.parameters

    @property
    def training_flops_per_token(self) -> float:
        """Forward and backward (twice the forward) of encoder and MLM head, with logits for MASK_RATE of the tokens."""
        return 3 * (self.encoder_flops / self.seq + MASK_RATE * self.mlm_flops_per_prediction)


def cost(config: Mapping, seq: int = 128) -> Cost:
    """The cost of a "mobilebert" or "bert" configuration (`presets.preset`, or a config's `to_dict()`).

    Raises UserError for another model type, or a length that is not from 1 to `max_position_embeddings`.
    """
    limit = config["max_position_embeddings"]
    if not 1 <= seq <= limit:
        raise UserError(f"seq: {seq} is not from 1 to max_position_embeddings, {limit}")
    if config["model_type"] == "mobilebert":
        return _mobilebert(config, seq)
    if config["model_type"] == "bert":
        return _bert(config, seq)
    raise UserError(f"model_type: {config['model_type']!r} is unknown: allowed are mobilebert, bert")


def _mobilebert(config: Mapping, seq: int) -> Cost:
    layers, vocab = config["num_hidden_layers"], config["vocab_size"]
    outer, embedding = config["hidden_size"], config["embedding_size"]
    bottleneck = config["use_bottleneck"]
    inner = config["intra_bottleneck_size"] if bottleneck else outer
    ffns, ffn_width = config["num_feedforward_networks"], config["intermediate_size"]
    inside, shared = config["use_bottleneck_attention"], config["key_query_shared_bottleneck"]

    words = embedding * (3 if config["trigram_input"] else 1)
    transformation = words * outer
    positions = config["max_position_embeddings"] + config["type_vocab_size"]
    embeddings = vocab * embedding + positions * outer + transformation + outer

    query_input = inner if inside or shared else outer
    value_input = inner if inside else outer
    mha = 2 * query_input * inner + value_input * inner + inner * inner
    ffn = ffns * 2 * inner * ffn_width
    # Input bottleneck, output bottleneck; the shared one of query and key.
    bottlenecks = bottleneck * (2 + shared) * outer * inner
    biases = 4 * inner + ffns * (ffn_width + inner) + bottleneck * (inner + outer + shared * inner)
    norms = inner + ffns * inner + bottleneck * (inner + outer + shared * inner)

    reads_shared = bottleneck and shared and not inside
    idle = bottleneck and inside and shared  # the shared bottleneck exists then, as in transformers, but nothing reads it
    transforms = config["trigram_input"] or embedding != outer
    macs = layers * (mha + ffn + bottlenecks - idle * outer * inner + 2 * seq * inner) + transforms * transformation
    head = outer * outer + outer * vocab

    # A product, an addition and a norm each: attention output, FFNs (with a product and an activation more), way out.
    # Before them query, key, value and the fused attention; each bottleneck is a product and a norm.
    kernels = 4 + 3 + 5 * ffns + 2 * (bottleneck + reads_shared) + 3 * bottleneck
    # Folded: one product before attention (TINY's bottleneck apart), one after; FFNs of two and an activation; way out, norm.
    folded = 3 + (bottleneck and inside) + 3 * ffns + bottleneck + 1
    lookup = 1 + 2 * config["trigram_input"] + transforms + 3  # the trigram pads and concatenates; position, segment, norm

    # Lives through a block: its input, the residual and the shared input. Beside them query, key, value and context; or
    # the FFN's input and its width before and, unless the activation is in place, after it; or, on the way out, FFN input,
    # width and output, and the product beside its sum with the residual. Beneath all of it, from the second block on, the
    # embeddings.
    held = outer + bottleneck * inner + reads_shared * inner
    way_out = 2 * (outer if bottleneck else inner) + bottleneck * inner
    widths = ffn_width * (1 if config["hidden_act"] == "relu" else 2)
    block = held + max(4 * inner, inner + widths, inner + ffn_width + way_out)
    trigram = config["trigram_input"] * embedding
    live = max(block + (layers > 1) * outer, trigram + 3 * outer, trigram + words + outer)

    # Kept for the backward pass: the block's input; query, key, value, context and a normalizer a head; then what enters a
    # norm (of LayerNorm its mean and deviation too) and what enters a product. relu is undone from its output, the other
    # activations from their input, which is one width more. An output that is the next input counts once.
    statistics = 2 * (config["normalization_type"] == "layer_norm")
    saved = outer + 4 * inner + config["num_attention_heads"] + (2 * inner + statistics)
    saved += ffns * (widths + 2 * inner + statistics)
    saved += inner + outer + 2 * statistics if bottleneck else -inner
    saved += reads_shared * (2 * inner + statistics) + (bottleneck and inside) * inner
    saved = layers * saved + transforms * words + outer + statistics
    return Cost(
        seq=seq,
        embeddings=embeddings,
        mha=layers * mha,
        ffn=layers * ffn,
        bottlenecks=layers * bottlenecks,
        norms=2 * (layers * norms + outer),
        biases=layers * biases,
        pooler=config["classifier_activation"] * (outer * outer + outer),
        # Transform and its LayerNorm; the columns that are not tied; the bias.
        mlm_head=outer * outer + 3 * outer + (outer - embedding) * vocab + vocab,
        nsp_head=2 * outer + 2,
        encoder_flops=2 * seq * macs,
        mlm_flops_per_prediction=2 * head,
        kernels=lookup + layers * kernels,
        folded_kernels=lookup + layers * folded if config["normalization_type"] == "no_norm" else None,
        activation_bytes=4 * seq * live,
        saved_bytes_per_token=4 * (saved + _saved_by_heads(config)),
    )


def _bert(config: Mapping, seq: int) -> Cost:
    layers, vocab = config["num_hidden_layers"], config["vocab_size"]
    width, ffn_width, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    mha, ffn = 4 * width * width, 2 * width * ffn_width
    return Cost(
        seq=seq,
        embeddings=(vocab + config["max_position_embeddings"] + config["type_vocab_size"]) * width,
        mha=layers * mha,
        ffn=layers * ffn,
        bottlenecks=0,
        norms=2 * (layers * 2 * width + width),
        biases=layers * (5 * width + ffn_width),
        pooler=width * width + width,
        mlm_head=width * width + 3 * width + vocab,
        nsp_head=2 * width + 2,
        encoder_flops=2 * seq * layers * (mha + ffn + 2 * seq * width),
        mlm_flops_per_prediction=2 * (width * width + width * vocab),
        kernels=7 + 12 * layers,  # three lookups, a gather, two additions, norm; counted as in `_mobilebert`
        folded_kernels=None,
        activation_bytes=4 * seq * ((layers > 1) * width + max(5 * width, 2 * width + 2 * ffn_width)),
        saved_bytes_per_token=4 * (layers * (8 * width + 2 * ffn_width + heads + 4) + width + 2 + _saved_by_heads(config)),
    )


def _saved_by_heads(config: Mapping) -> float:
    """Floats a token: the last block's output, of which the NSP head reads a view; and what the MLM head keeps of each
    prediction: inputs of product, activation (not relu), norm and decoder, two of LayerNorm, the log-probabilities."""
    width = config["hidden_size"]
    return width + MASK_RATE * ((3 if config["hidden_act"] == "relu" else 4) * width + 2 + config["vocab_size"])


def describe(name: str, seq: int = 128, as_json: bool = False) -> str:
    """Return what a model is and costs at length `seq`, beside what the paper prints for it (marked published).

    name: a preset, or a row of the paper's tables. The published FLOPs are for length 128 and so stand beside that length only.
    Raises UserError for another name, for a row that is no transformer, and as `cost` does.
    """
    rows = paper.models()
    known = [*names(), *(row for row in rows if row not in names() and rows[row].preset in names())]
    if name not in known:
        raise UserError(f"describe: no model {shown(name)}; {allowed(known, name)}")
    config = preset(name) if name in names() else preset(rows[name].preset, **rows[name].overrides)
    figures = cost(config, seq)
    params, table, flops = _published(name)
    published = {"parameters_M": params, "flops_G": flops if seq == 128 else None}
    computed = asdict(figures) | {
        "encoder": figures.encoder,
        "training_flops_per_token": figures.training_flops_per_token,
        "parameters": figures.parameters,
        "weight_bytes": figures.weight_bytes,
        "training_state_bytes": figures.training_state_bytes,
    }
    if as_json:
        record = {"preset": name, "config": config, "cost": computed, "published": published}
        return json.dumps(record, indent=2)

    rows = [
        (part, f"{computed[part] / 1e6:.3f} M", "") for part in ("embeddings", "mha", "ffn", "bottlenecks", "norms", "biases")
    ]
    rows += [
        ("parameters", f"{figures.encoder / 1e6:.3f} M", "" if params is None else f"{params} M (Table {table})"),
        ("pooler", f"{figures.pooler / 1e6:.3f} M", ""),
        ("mlm_head", f"{figures.mlm_head / 1e6:.3f} M", ""),
        ("nsp_head", f"{figures.nsp_head / 1e6:.3f} M", ""),
        (
            f"FLOPs, length {seq}",
            f"{figures.encoder_flops / 1e9:.2f} G",
            "" if published["flops_G"] is None else f"{flops} G (Table 4)",
        ),
        ("training FLOPs/token", f"{figures.training_flops_per_token / 1e9:.4f} G", ""),
        ("kernels", f"{figures.kernels:,}", ""),
        ("kernels, folded", f"{figures.folded_kernels:,}" if figures.folded_kernels else "-", ""),
        *((f"weights, {precision}", _mib(size), "") for precision, size in figures.weight_bytes.items()),
        (f"activations, length {seq}", _mib(figures.activation_bytes), ""),
        ("training state", _mib(figures.training_state_bytes), ""),
        ("training memory/token", _mib(figures.saved_bytes_per_token), ""),
    ]
    lines = [_shape(name, config), f"{'':24}{'computed':>13}   published"]
    lines += [f"{label:24}{value:>13}   {printed}".rstrip() for label, value, printed in rows]
    return "\n".join(lines)


def _published(name: str) -> tuple[float | None, int | None, float | None]:
    """Return the parameters in M that the paper prints for a model, the number of that table, and the FLOPs in G of Table 4."""
    if name in PUBLISHED:
        params, flops = PUBLISHED[name]
        return params, 1, flops
    for row in paper.table(2).rows:
        if row.model == name:
            printed: Any = row.published["params_M"]
            return printed, 2, None
    return None, None, None


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB"


def _shape(name: str, config: Mapping) -> str:
    shape = f"{name}: {config['num_hidden_layers']} layers, width {config['hidden_size']}"
    if config["model_type"] == "mobilebert":
        shape += f" ({config['intra_bottleneck_size']} inside), {config['num_feedforward_networks']} x FFN"
    else:
        shape += ", FFN"
    return f"{shape} {config['intermediate_size']}, {config['num_attention_heads']} heads, {config['hidden_act']}"
