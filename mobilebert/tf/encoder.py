"""Define block, encoder, pooler and the layer that holds them, in Keras."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.tf.inputs import InputError, additive_mask, check_shape, check_tokens, refuse_ids
from mobilebert.tf.layers import (
    TFBottleneck,
    TFFFNLayer,
    TFMobileBertAttention,
    TFMobileBertEmbeddings,
    TFMobileBertIntermediate,
    TFMobileBertOutput,
)
from mobilebert.tf.outputs import TFBaseModelOutputWithPooling
from mobilebert.tf.parts import Dense, Part
from mobilebert.util.errors import UserError


class TFMobileBertLayer(Part):
    """A block (figure 1): bottleneck, attention, feed-forward networks, output bottleneck."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.attention = TFMobileBertAttention(config)
        self.intermediate = TFMobileBertIntermediate(config)
        self.output_ = TFMobileBertOutput(config)
        self.bottleneck = TFBottleneck(config) if config.use_bottleneck else None
        # The last feed-forward network is `intermediate` and `output_`.
        self.ffn = [TFFFNLayer(config) for _ in range(config.num_feedforward_networks - 1)]

    def call(self, hidden_states, attention_mask=None, head_mask=None, training=None):
        """Return the output (batch, tokens, hidden_size), and attention probabilities."""
        if self.bottleneck is None:
            query_key_input = value_input = residual = hidden_states
        else:
            query_key_input, value_input, residual = self.bottleneck(hidden_states)
        x, probabilities = self.attention(
            query_key_input, value_input, residual, attention_mask, head_mask=head_mask, training=training
        )
        for ffn in self.ffn:
            x = ffn(x)
        return self.output_(self.intermediate(x), x, hidden_states, training=training), probabilities


class TFMobileBertEncoder(Part):
    """The blocks, one after the other."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.layer = [TFMobileBertLayer(config) for _ in range(config.num_hidden_layers)]

    def call(self, hidden_states, attention_mask=None, head_mask=None, training=None):
        """Return all hidden states, the embeddings' first, and each block's probabilities."""
        states, attentions = [hidden_states], []
        for index, layer in enumerate(self.layer):
            of_heads = None if head_mask is None else head_mask[index]
            hidden_states, probabilities = layer(hidden_states, attention_mask, head_mask=of_heads, training=training)
            states.append(self.state(hidden_states, index + 1))
            attentions.append(probabilities)
        return tuple(states), tuple(attentions)

    def state(self, stream, blocks):
        """Return the hidden state for what `blocks` blocks made: itself, except in `folding`."""
        return stream


class TFMobileBertPooler(Part):
    """The first token's vector, through a tanh layer if `classifier_activation` is set."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.hidden_size, config.hidden_size) if config.classifier_activation else None

    def call(self, hidden_states):
        """Return (batch, hidden_size) for hidden states (batch, tokens, hidden_size)."""
        first = hidden_states[:, 0]
        return first if self.dense is None else tf.tanh(self.dense(first))


class TFMobileBertMainLayer(Part):
    """Embeddings, encoder and pooler: what every model holds under the name `mobilebert`."""

    def __init__(self, config: MobileBertConfig, add_pooling_layer: bool = True):
        super().__init__()
        self.config = config
        self.embeddings = TFMobileBertEmbeddings(config)
        self.encoder = TFMobileBertEncoder(config)
        self.pooler = TFMobileBertPooler(config) if add_pooling_layer else None

    def call(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        head_mask=None,
        inputs_embeds=None,
        output_attentions=None,
        output_hidden_states=None,
        training=None,
    ):
        """Return the last hidden state, the pooled vector and, if asked for, all layers' outputs.

        The inputs are those of `TFMobileBertModel`, as tensors.
        Raises InputError for a sequence that is too long, for input of another shape and, outside
        tf.function, for ids out of range.
        """
        check_shape(input_ids, inputs_embeds)
        check_tokens(inputs_embeds if input_ids is None else input_ids, attention_mask, token_type_ids, position_ids)
        try:
            embedded = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, training=training)
        except tf.errors.InvalidArgumentError:  # from a lookup on the CPU
            refuse_ids(self.embeddings, input_ids, token_type_ids, position_ids)
            raise
        mask = additive_mask(attention_mask, embedded.dtype, self.config.mask_value)
        states, attentions = self.encoder(embedded, mask, head_mask=self._head_mask(head_mask), training=training)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        return TFBaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=None if self.pooler is None else self.pooler(states[-1]),
            hidden_states=states if wants_states else None,
            attentions=attentions if wants_attentions else None,
        )

    def _head_mask(self, mask: Any) -> Any:
        """Return a mask (layers, heads), or None; a mask (heads,) is for every layer."""
        if mask is None:
            return None
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        if tuple(mask.shape) not in ((heads,), (layers, heads)):
            raise InputError(f"head_mask: shape {tuple(mask.shape)}; allowed are ({heads},) and ({layers}, {heads})")
        return tf.broadcast_to(mask, (layers, heads))


def check_dtype(dtype: Any) -> None:
    """Raise UserError if Keras computes in float16, in which the activations overflow.

    dtype: the argument of a Keras layer. Our layers have the global policy, so another is refused.
    """
    policy = keras.config.dtype_policy()
    if dtype is not None and keras.dtype_policies.get(dtype).name != policy.name:
        raise UserError(f"dtype: {dtype}; set it for all layers before: keras.config.set_dtype_policy(...)")
    if "float16" in (policy.compute_dtype, policy.variable_dtype):
        raise UserError("dtype: float16 ends at 65,504 and MobileBERT's activations reach 1e8; use bfloat16 or float32")
