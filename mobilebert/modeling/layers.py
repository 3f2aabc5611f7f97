"""Define the parts of a MobileBERT block (paper, section 3, figure 1), named as in transformers.

Shapes: `batch, tokens, width`. Width is `hidden_size` between blocks (paper: inter-block, 512) and
`true_hidden_size` inside one (intra-block: 128 for the student, 1024 for the teacher). Names of
weights are those of transformers' state dict.
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
TORCH_LAYER_NORM_EPS = 1e-5


def norm(config: MobileBertConfig, width: int, eps: float | None = None) -> NoNorm | nn.LayerNorm:
    """Return the configured norm over `width` features; `eps` defaults to the configuration's."""
    if config.normalization_type == "no_norm":
        return NoNorm(width)
    return nn.LayerNorm(width, eps=config.layer_norm_eps if eps is None else eps)


def unset_eps(config: MobileBertConfig) -> float:
    """Return the epsilon of the two norms for which transformers forgets `layer_norm_eps`.

    They are the embedding norm and the last FFN's norm. transformers leaves torch's epsilon there,
    and another one would change the outputs of its LayerNorm checkpoints. The authors' code has the
    configured epsilon everywhere. So have the architectures that only this package builds: the
    teacher and Table 1's student. NoNorm has no epsilon.
    """
    return TORCH_LAYER_NORM_EPS if config.is_built_by_transformers else config.layer_norm_eps


def residual_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that writes to a residual stream (see `residual_init_scale`)."""
    linear = nn.Linear(inputs, outputs)
    linear.writes_residual = True  # pyrefly: ignore[bad-argument-type]  # a mark, not a subclass: quantizers look layers up by their exact type
    return linear


class MobileBertEmbeddings(nn.Module):
    """Word embeddings of three neighbours, mapped to `hidden_size`, plus position and segment.

    Source: paper, section 3.1.
    """

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.trigram_input = config.trigram_input
        self.transforms = config.trigram_input or config.embedding_size != config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        neighbours = 3 if config.trigram_input else 1
        # Built even if nothing needs it, as in transformers, so that the state dicts agree.
        self.embedding_transformation = nn.Linear(neighbours * config.embedding_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size, eps=unset_eps(config))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (batch, tokens, hidden_size) for ids (batch, tokens) or for `inputs_embeds`.

        inputs_embeds: (batch, tokens, embedding_size), in place of input_ids.
        Raises UserError for more tokens than there are positions.
        """
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        positions, types = self.position_embeddings, self.token_type_embeddings
        tokens = words.shape[1]
        longest = getattr(positions, "num_embeddings", tokens)  # a module put in its place may not know its size
        if tokens > longest:
            raise UserError(f"input_ids: {tokens} tokens, but max_position_embeddings is {longest}")
        if self.trigram_input:
            # Next, current, previous. Zeros only at the ends of the tensor: the last real token of
            # a padded row sees the embedding of [PAD].
            padded = F.pad(words, (0, 0, 1, 1))
            words = torch.cat([padded[:, 2:], words, padded[:, :-2]], dim=-1)
        if self.transforms:
            words = project(self.embedding_transformation, words)
        # Default ids take slices of the tables: no gather forward, no scatter backward.
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
        """Return (batch, tokens, intra_bottleneck_size)."""
        return project_and_norm(self.dense, self.LayerNorm, hidden_states)


class Bottleneck(nn.Module):
    """The inputs of a block's attention, and the start of its residual stream.

    | use_bottleneck_attention | key_query_shared_bottleneck | query, key | value | model
    | false                    | true                        | attention  | block | released
    | false                    | false                       | block      | block | Table 1, teacher
    | true                     | false                       | input      | input | TINY

    block: the block's input. input, attention: the output of the bottleneck of that name.
    """

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.use_bottleneck_attention = config.use_bottleneck_attention
        self.input = BottleneckLayer(config)
        self.attention = BottleneckLayer(config) if config.key_query_shared_bottleneck else None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the input of query and key, the input of value, and the residual.

        hidden_states: (batch, tokens, hidden_size).
        """
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
        inner, outer = config.true_hidden_size, config.hidden_size  # equal without bottlenecks
        value_input = inner if config.use_bottleneck_attention else outer
        # transformers always gives query and key the width `inner`; see `is_built_by_transformers`.
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
        """Return the context (batch, tokens, true_hidden_size) and the attention probabilities.

        The inputs are (batch, tokens, .); the mask is added to the scores. The probabilities are
        (batch, heads, query tokens, key tokens), before dropout: attention transfer compares those.
        They are None unless asked for, because the fused kernel never holds them.
        """
        query = self._split(project(self.query, query_key_input))
        key = self._split(project(self.key, query_key_input))
        value = self._split(project(self.value, value_input))
        if self.replaces_scores and attention_mask is not None:
            # A key of zeros scores 0; the mask then adds -6 to it, which replaces the score.
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
        # Hidden dropout comes last in a block: with bottlenecks, in the output bottleneck alone.
        self.dropout = nn.Identity() if config.use_bottleneck else nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return (batch, tokens, true_hidden_size)."""
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
        """Return (batch, tokens, true_hidden_size), and attention probabilities or None."""
        context, probabilities = self.self(query_key_input, value_input, attention_mask, with_probabilities)
        return self.output(context, residual), probabilities


class MobileBertIntermediate(nn.Module):
    """First half of a feed-forward network: linear and activation."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.true_hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, tokens, intermediate_size)."""
        return activate(self.activation, project(self.dense, x), self.dense)


class FFNOutput(nn.Module):
    """Second half of a stacked feed-forward network: linear, residual, norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.intermediate_size, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return (batch, tokens, true_hidden_size)."""
        return project_and_norm(self.dense, self.LayerNorm, x, residual)


class FFNLayer(nn.Module):
    """A stacked feed-forward network that is not a block's last one (section 3.2)."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.intermediate = MobileBertIntermediate(config)
        self.output = FFNOutput(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, tokens, true_hidden_size)."""
        return self.output(self.intermediate(x), x)


class OutputBottleneck(nn.Module):
    """Linear layer back to `hidden_size`, dropout, the block's input added, norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.true_hidden_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return (batch, tokens, hidden_size)."""
        return project_and_norm(self.dense, self.LayerNorm, x, residual, self.dropout)


class MobileBertOutput(nn.Module):
    """Second half of a block's last feed-forward network, then the output bottleneck if any."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = residual_linear(config.intermediate_size, config.true_hidden_size)
        self.LayerNorm = norm(config, config.true_hidden_size, eps=unset_eps(config))
        self.dropout = nn.Identity() if config.use_bottleneck else nn.Dropout(config.hidden_dropout_prob)
        self.bottleneck = OutputBottleneck(config) if config.use_bottleneck else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor, block_input: torch.Tensor) -> torch.Tensor:
        """Return the block's output (batch, tokens, hidden_size)."""
        x = project_and_norm(self.dense, self.LayerNorm, x, residual, self.dropout)
        return x if self.bottleneck is None else self.bottleneck(x, block_input)
