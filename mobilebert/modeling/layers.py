"""The parts of a MobileBERT block (paper, section 3 and figure 1), named as in transformers' state dict.

Shapes: `batch, tokens, width`. Width is `hidden_size` between blocks (paper: inter-block, 512) and `true_hidden_size`
inside one (intra-block: 128 for the student, 1024 for the teacher).
"""

import torch
import torch.nn.functional as F
from torch import nn

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.inplace import NoNorm, activate, plain, project, project_and_norm
from mobilebert.util.errors import UserError

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
}
# transformers leaves torch's epsilon on the embedding norm and on the last FFN's norm, and so do we, or a LayerNorm
# checkpoint would give other numbers here than there. NoNorm has no epsilon.
TORCH_LAYER_NORM_EPS = 1e-5


def norm(config: MobileBertConfig, width: int, eps: float | None = None) -> NoNorm | nn.LayerNorm:
    """The configured norm over `width` features; `eps` defaults to the configuration's."""
    if config.normalization_type == "no_norm":
        return NoNorm(width)
    return nn.LayerNorm(width, eps=config.layer_norm_eps if eps is None else eps)


def residual_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose output is added to a residual stream: what `residual_init_scale` scales."""
    linear = nn.Linear(inputs, outputs)
    linear.writes_residual = True  # pyright: ignore[reportArgumentType]  # a mark, not a subclass: quantizers look layers up by their exact type
    return linear


class MobileBertEmbeddings(nn.Module):
    """Word embeddings of three neighbours, mapped to `hidden_size`, plus position and segment (section 3.1)."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.trigram_input = config.trigram_input
        self.transforms = config.trigram_input or config.embedding_size != config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        neighbours = 3 if config.trigram_input else 1
        # Present even where nothing needs it, as in transformers, so that the state dicts agree.
        self.embedding_transformation = nn.Linear(neighbours * config.embedding_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size, eps=TORCH_LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, tokens) ids, or `inputs_embeds` (batch, tokens, embedding_size) -> (batch, tokens, hidden_size).

        Raises UserError for more tokens than there are positions.
        """
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        positions, types = self.position_embeddings, self.token_type_embeddings
        tokens = words.shape[1]
        longest = getattr(positions, "num_embeddings", tokens)  # what stands in for a table need not know its size
        if tokens > longest:
            raise UserError(f"input_ids: {tokens} tokens, but max_position_embeddings is {longest}")
        if self.trigram_input:
            # Next, current, previous; zeros only at the ends of the tensor, so a last real token sees [PAD] behind it.
            padded = F.pad(words, (0, 0, 1, 1))
            words = torch.cat([padded[:, 2:], words, padded[:, :-2]], dim=-1)
        if self.transforms:
            words = project(self.embedding_transformation, words)
        # Slices of the tables if the ids are the default ones: no gather forward, no scatter backward.
        if position_ids is None and plain(positions, nn.Embedding):
            position = positions.weight[:tokens]
        else:
            position = positions(torch.arange(tokens, device=words.device)[None] if position_ids is None else position_ids)
        if token_type_ids is None and plain(types, nn.Embedding):
            segment = types.weight[0]
        else:
            zeros = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
            segment = types(zeros if token_type_ids is None else token_type_ids)
        return self.dropout(self.LayerNorm(words + position + segment))


class BottleneckLayer(nn.Module):
    """Linear to the intra-block width, then the norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intra_bottleneck_size)
        self.LayerNorm = norm(config, config.intra_bottleneck_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return project_and_norm(self.dense, self.LayerNorm, hidden_states)


class Bottleneck(nn.Module):
    """What a block's attention reads, and what its residual starts from.

    | use_bottleneck_attention | key_query_shared_bottleneck | query, key         | value          | model
    | false                    | true                        | a bottleneck apart | block input    | released MobileBERT
    | false                    | false                       | block input        | block input    | Table 1, teacher
    | true                     | false                       | the bottleneck     | the bottleneck | MobileBERT-TINY
    """

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.use_bottleneck_attention = config.use_bottleneck_attention
        self.input = BottleneckLayer(config)
        self.attention = BottleneckLayer(config) if config.key_query_shared_bottleneck else None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(batch, tokens, hidden_size) -> input of query and key, input of value, residual."""
        residual = self.input(hidden_states)
        if self.use_bottleneck_attention:
            return residual, residual, residual
        if self.attention is not None:
            return self.attention(hidden_states), hidden_states, residual
        return hidden_states, hidden_states, residual


class MobileBertSelfAttention(nn.Module):
    """Multi-head attention up to, not including, the output projection."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        inner, outer = config.true_hidden_size, config.hidden_size  # equal where there is no bottleneck
        value_input = inner if config.use_bottleneck_attention else outer
        # transformers gives query and key `inner` always, so it can build neither Table 1's student nor the teacher.
        query_input = inner if config.use_bottleneck_attention or config.key_query_shared_bottleneck else outer
        self.heads = config.num_attention_heads
        self.replaces_scores = config.mask_value == "-6"
        self.query = nn.Linear(query_input, inner)
        self.key = nn.Linear(query_input, inner)
        self.value = nn.Linear(value_input, inner)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(
        self,
        query_key_input: torch.Tensor,
        value_input: torch.Tensor,
        attention_mask: torch.Tensor | None,
        with_probabilities: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, .) twice and an additive mask -> context (batch, tokens, true_hidden_size), probabilities.

        The probabilities (batch, heads, query tokens, key tokens) are those before dropout, as attention transfer
        compares them; they are None unless asked for, since the fused kernel never holds them.
        """
        query = self._split(project(self.query, query_key_input))
        key = self._split(project(self.key, query_key_input))
        value = self._split(project(self.value, value_input))
        if self.replaces_scores and attention_mask is not None:
            # A key of zeros scores 0, so that -6 added to it takes the score's place.
            key = key.masked_fill((attention_mask == -6).transpose(-1, -2), 0)
        rate = self.dropout.p if self.training else 0.0
        if with_probabilities:
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            if attention_mask is not None:
                scores = scores + attention_mask
            probabilities = scores.softmax(dim=-1)
            context = F.dropout(probabilities, rate, training=self.training) @ value
        else:
            probabilities = None
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=rate)
        return context.transpose(1, 2).flatten(2), probabilities


class MobileBertSelfOutput(nn.Module):
    """Output projection of attention, residual and norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.true_hidden_size, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size)
        # Dropout sits at the end of a block: with bottlenecks that is the output bottleneck, not here.
        self.dropout = nn.Identity() if config.use_bottleneck else nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return project_and_norm(self.dense, self.LayerNorm, context, residual, self.dropout)


class MobileBertAttention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.self = MobileBertSelfAttention(config)
        self.output = MobileBertSelfOutput(config)

    def forward(
        self,
        query_key_input: torch.Tensor,
        value_input: torch.Tensor,
        residual: torch.Tensor,
        attention_mask: torch.Tensor | None,
        with_probabilities: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context, probabilities = self.self(query_key_input, value_input, attention_mask, with_probabilities)
        return self.output(context, residual), probabilities


class MobileBertIntermediate(nn.Module):
    """First half of a feed-forward network: linear and activation."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.true_hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return activate(self.activation, project(self.dense, x), self.dense)


class FFNOutput(nn.Module):
    """Second half of a stacked feed-forward network: linear, residual, norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.intermediate_size, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return project_and_norm(self.dense, self.LayerNorm, x, residual)


class FFNLayer(nn.Module):
    """One of the stacked feed-forward networks before a block's last (section 3.2)."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.intermediate = MobileBertIntermediate(config)
        self.output = FFNOutput(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.intermediate(x), x)


class OutputBottleneck(nn.Module):
    """Linear back to `hidden_size`, dropout, the block's residual, norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.true_hidden_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return project_and_norm(self.dense, self.LayerNorm, x, residual, self.dropout)


class MobileBertOutput(nn.Module):
    """Second half of a block's last feed-forward network, and the way out of the block."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.intermediate_size, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size, eps=TORCH_LAYER_NORM_EPS)
        self.dropout = nn.Identity() if config.use_bottleneck else nn.Dropout(config.hidden_dropout_prob)
        self.bottleneck = OutputBottleneck(config) if config.use_bottleneck else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor, block_input: torch.Tensor) -> torch.Tensor:
        x = project_and_norm(self.dense, self.LayerNorm, x, residual, self.dropout)
        return x if self.bottleneck is None else self.bottleneck(x, block_input)
