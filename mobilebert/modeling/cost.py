"""Compute parameters, FLOPs, kernels and memory of a configuration, without a model or torch.

A FLOP count is 2 x multiply-accumulates of the matrix products (embedding transformation,
bottlenecks, projections, attention scores and contexts, FFNs). Norms, activations and softmax are
left out, as in the paper's Table 4.

A kernel is an operation of eager PyTorch that computes, in inference and without padding: a matrix
product with its bias, an addition, a norm, an activation, a fused attention, a lookup. Views and
inactive dropout do not count.

Memory is that of tensors; what the allocator and the kernels use is left out.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mobilebert import paper
from mobilebert.modeling.presets import names, preset
from mobilebert.util.errors import UserError, allowed, shown

MASK_RATE = 0.15  # share of tokens with an MLM target (Devlin et al. 2019)

# (parameters in M of Table 1, FLOPs in G of Table 4), as printed; None if there is no such row.
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
    """Numbers of parameters, and FLOPs, kernels and memory of one sequence of `seq` tokens.

    embeddings: parameters of the tables and of the transformation with its bias.
    float_embeddings: those of them that an int8 file stores as float32: the transformation's bias,
        and the positions of MobileBERT, which takes a slice of them instead of a lookup.
    mha, ffn, bottlenecks: parameters of the blocks' weight matrices (the columns of Table 3).
    norms: parameters of all norms of encoder and embeddings.
    biases: parameters of the blocks' biases.
    mlm_head: parameters of the MLM head, without the decoder's tied columns (in `embeddings`).
    folded_kernels: kernels after `modeling.folding.fold`; None if the model cannot be folded.
    activation_bytes: the most that is live at once in float32 inference of embeddings and encoder.
    saved_bytes_per_token: what float32 training keeps for the backward pass, with logits for
        MASK_RATE of the tokens, fused attention and no dropout masks. The gradients of the backward
        pass and the logits come on top.
    """

    seq: int
    embeddings: int
    float_embeddings: int
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
        """Return the parameters without pooler and heads: the total in the paper's tables."""
        return self.embeddings + self.mha + self.ffn + self.bottlenecks + self.norms + self.biases

    @property
    def parameters(self) -> int:
        """Return the parameters of the pre-training model: encoder, pooler and both heads."""
        return self.encoder + self.pooler + self.mlm_head + self.nsp_head

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of embeddings and encoder for each number format.

        int8: as `deployment.quantize` stores a model that is not folded. Matrices and tables take
        one byte a number; norms, biases and `float_embeddings` take four. Scales come on top.
        """
        floats = self.norms + self.biases + self.float_embeddings
        return {"fp32": 4 * self.encoder, "bf16": 2 * self.encoder, "int8": self.encoder + 3 * floats}

    @property
    def training_state_bytes(self) -> int:
        """Return the bytes of weights, gradients and both moments of LAMB or AdamW.

        The model is that of pre-training; each number has four bytes.
        """
        return 16 * self.parameters

    @property
    def training_flops_per_token(self) -> float:
        """Return the FLOPs a token of encoder and MLM head: forward, and backward at twice that.

        Logits are computed for MASK_RATE of the tokens.
        """
        return 3 * (self.encoder_flops / self.seq + MASK_RATE * self.mlm_flops_per_prediction)


def cost(config: Mapping, seq: int = 128) -> Cost:
    """Return the cost of a "mobilebert" or "bert" configuration.

    config: from `presets.preset`, or a config's `to_dict()`.
    Raises UserError for another model type, or a length not from 1 to `max_position_embeddings`.
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
    positions = config["max_position_embeddings"]
    embeddings = vocab * embedding + (positions + config["type_vocab_size"]) * outer + transformation + outer

    query_input = inner if inside or shared else outer
    value_input = inner if inside else outer
    mha = 2 * query_input * inner + value_input * inner + inner * inner
    ffn = ffns * 2 * inner * ffn_width
    # Input bottleneck and output bottleneck; the shared one of query and key if there is one.
    bottlenecks = bottleneck * (2 + shared) * outer * inner
    biases = 4 * inner + ffns * (ffn_width + inner) + bottleneck * (inner + outer + shared * inner)
    norms = inner + ffns * inner + bottleneck * (inner + outer + shared * inner)

    reads_shared = bottleneck and shared and not inside
    idle = bottleneck and inside and shared  # the shared bottleneck then exists, as in transformers, but nothing reads it
    transforms = config["trigram_input"] or embedding != outer
    macs = layers * (mha + ffn + bottlenecks - idle * outer * inner + 2 * seq * inner) + transforms * transformation
    head = outer * outer + outer * vocab

    # 4: query, key, value and the fused attention. 3 (product, addition, norm): attention output,
    # output bottleneck, each FFN (with a product and an activation more). 2 (product, norm): input
    # and shared bottleneck.
    kernels = 4 + 3 + 5 * ffns + 2 * (bottleneck + reads_shared) + 3 * bottleneck
    # Folded: one product before attention (two for TINY and for a shared bottleneck), the
    # attention, one product after it; each FFN has two products and an activation; then the output
    # bottleneck's product.
    folded = 3 + (bottleneck and (inside or shared)) + 3 * ffns + bottleneck
    lookup = 1 + 2 * config["trigram_input"] + transforms + 3  # the trigram pads and concatenates; 3: position, segment, norm

    # A block holds its input, the residual and the shared input throughout. The most of these is
    # added: query, key, value and context; or an FFN's input and its hidden units, twice unless the
    # activation is in place; or, at the end, the FFN's input, hidden units and output, and the last
    # product and its sum with the residual. From the second block on, the embeddings live too.
    held = outer + bottleneck * inner + reads_shared * inner
    way_out = 2 * (outer if bottleneck else inner) + bottleneck * inner
    widths = ffn_width * (1 if config["hidden_act"] == "relu" else 2)
    block = held + max(4 * inner, inner + widths, inner + ffn_width + way_out)
    trigram = config["trigram_input"] * embedding
    live = max(block + (layers > 1) * outer, trigram + 3 * outer, trigram + words + outer)

    # Kept for the backward pass: the block's input; query, key, value, context and a normalizer a
    # head; the inputs of norms (for LayerNorm its mean and deviation too) and of products. The
    # backward pass of relu reads its output, that of other activations their input, which is one
    # more tensor. A tensor that is an output and the next input counts once.
    statistics = 2 * (config["normalization_type"] == "layer_norm")
    saved = outer + 4 * inner + config["num_attention_heads"] + (2 * inner + statistics)
    saved += ffns * (widths + 2 * inner + statistics)
    saved += inner + outer + 2 * statistics if bottleneck else -inner
    saved += reads_shared * (2 * inner + statistics) + (bottleneck and inside) * inner
    saved = layers * saved + transforms * words + outer + statistics
    return Cost(
        seq=seq,
        embeddings=embeddings,
        float_embeddings=(positions + 1) * outer,
        mha=layers * mha,
        ffn=layers * ffn,
        bottlenecks=layers * bottlenecks,
        norms=2 * (layers * norms + outer),
        biases=layers * biases,
        pooler=config["classifier_activation"] * (outer * outer + outer),
        # The transform and its LayerNorm; the columns that are not tied; the bias.
        mlm_head=outer * outer + 3 * outer + (outer - embedding) * vocab + vocab,
        nsp_head=2 * outer + 2,
        encoder_flops=2 * seq * macs,
        mlm_flops_per_prediction=2 * head,
        kernels=lookup + layers * kernels,
        folded_kernels=lookup + layers * folded + 1 if config["normalization_type"] == "no_norm" else None,
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
        float_embeddings=0,
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
        kernels=7 + 12 * layers,  # 7: three lookups, a gather, two additions, a norm; 12: counted as in `_mobilebert`
        folded_kernels=None,
        activation_bytes=4 * seq * ((layers > 1) * width + max(5 * width, 2 * width + 2 * ffn_width)),
        saved_bytes_per_token=4 * (layers * (8 * width + 2 * ffn_width + heads + 4) + width + 2 + _saved_by_heads(config)),
    )


def _saved_by_heads(config: Mapping) -> float:
    """Return the floats a token that the heads keep for the backward pass.

    They are the last block's output, of which the NSP head reads a view; and for each prediction
    of the MLM head the inputs of product, activation (not relu), norm and decoder, two numbers of
    LayerNorm and the log-probabilities.
    """
    width = config["hidden_size"]
    return width + MASK_RATE * ((3 if config["hidden_act"] == "relu" else 4) * width + 2 + config["vocab_size"])


def describe(name: str, seq: int = 128, as_json: bool = False) -> str:
    """Return the shape and the cost of a model at length `seq`, and the paper's published numbers.

    name: a preset, or a row of the paper's tables. The published FLOPs are for length 128, so other
    lengths show none. Raises UserError for another name, for a row that is no transformer, and if
    `cost` does.
    """
    rows = paper.models()
    known = [*names(), *(row for row in rows if row not in names() and rows[row].preset in names())]
    if name not in known:
        raise UserError(f"describe: no model {shown(name)}; {allowed(known, name)}")
    config = preset(name) if name in names() else preset(rows[name].preset, **rows[name].overrides)
    figures = cost(config, seq)
    params, table, flops = _published(name)
    published = {"parameters_M": params, "flops_G": flops if seq == 128 else None}
    computed: dict[str, Any] = asdict(figures) | {
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
    """Return the paper's parameters in M of a model, that table's number, and Table 4's GFLOPs."""
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
