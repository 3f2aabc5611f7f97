"""Define the parts of a MobileBERT block in Keras, named as in `mobilebert.modeling.layers`.

Shapes: `batch, tokens, width`, with the widths of `mobilebert.modeling.layers`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.tf.inputs import InputError
from mobilebert.tf.parts import ACTIVATIONS, Dense, Embedding, Part, norm, unset_eps


class TFMobileBertEmbeddings(Part):
    """Word embeddings of three neighbours, mapped to `hidden_size`, plus position and segment."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.trigram_input = config.trigram_input
        self.transforms = config.trigram_input or config.embedding_size != config.hidden_size
        self.word_embeddings = Embedding(config, config.vocab_size, config.embedding_size)
        if config.pad_token_id is not None:  # zeros, as PyTorch's padding_idx
            row = tf.one_hot([config.pad_token_id], config.vocab_size)[0][:, None]
            self.word_embeddings.weight.assign(self.word_embeddings.weight * (1 - row))
        self.position_embeddings = Embedding(config, config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config, config.type_vocab_size, config.hidden_size)
        neighbours = 3 if config.trigram_input else 1
        # Built even if nothing needs it, so that the names are those of PyTorch.
        self.embedding_transformation = Dense(config, neighbours * config.embedding_size, config.hidden_size)
        self.LayerNorm = norm(config, config.hidden_size, eps=unset_eps(config))
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None, training=None):
        """Return (batch, tokens, hidden_size) for ids (batch, tokens) or for `inputs_embeds`.

        inputs_embeds: (batch, tokens, embedding_size), in place of input_ids.
        Raises InputError for more tokens than there are positions, and embeddings of another width.
        """
        words: Any = self._words(input_ids, training) if inputs_embeds is None else inputs_embeds
        longest, width = self.position_embeddings.rows, self.word_embeddings.width
        if words.shape[-1] not in (None, width):
            raise InputError(f"inputs_embeds: {words.shape[-1]} features, but embedding_size is {width}")
        if words.shape[1] is None:  # a graph for any length
            says = f"input_ids: more tokens than max_position_embeddings, {longest}"
            tf.debugging.assert_less_equal(tf.shape(words)[1], longest, message=says)
        elif words.shape[1] > longest:
            raise InputError(f"input_ids: {words.shape[1]} tokens, but max_position_embeddings is {longest}")
        if self.trigram_input:
            # Next, current, previous; zeros only at the ends of the tensor.
            following = tf.pad(words[:, 1:], ((0, 0), (0, 1), (0, 0)))
            words = tf.concat([following, words, tf.pad(words[:, :-1], ((0, 0), (1, 0), (0, 0)))], axis=-1)
        if self.transforms:
            words = self.embedding_transformation(words)
        if position_ids is None:
            tokens = tf.shape(words)[1] if words.shape[1] is None else words.shape[1]
            position = tf.convert_to_tensor(self.position_embeddings.weight)[:tokens]
        else:
            position = self.position_embeddings(position_ids)
        if token_type_ids is None:
            segment = tf.convert_to_tensor(self.token_type_embeddings.weight)[0]
        else:
            segment = self.token_type_embeddings(token_type_ids)
        x = words + tf.cast(position, words.dtype) + tf.cast(segment, words.dtype)
        return self.dropout(self.LayerNorm(x), training=training)

    def _words(self, input_ids, training):
        words = self.word_embeddings(input_ids)
        if training and self.pad_token_id is not None:  # PyTorch's padding_idx: [PAD] gets no gradient from its lookups
            words = tf.where((input_ids == self.pad_token_id)[..., None], tf.stop_gradient(words), words)
        return words


class TFBottleneckLayer(Part):
    """Linear to the intra-block width, then the norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.hidden_size, config.intra_bottleneck_size)
        self.LayerNorm = norm(config, config.intra_bottleneck_size)

    def call(self, hidden_states):
        """Return (batch, tokens, intra_bottleneck_size)."""
        return self.LayerNorm(self.dense(hidden_states))


class TFBottleneck(Part):
    """The inputs of a block's attention, and the start of its residual stream.

    `mobilebert.modeling.layers.Bottleneck` has the table of the layouts.
    """

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.use_bottleneck_attention = config.use_bottleneck_attention
        self.input_ = TFBottleneckLayer(config)
        self.attention = TFBottleneckLayer(config) if config.key_query_shared_bottleneck else None

    def call(self, hidden_states):
        """Return the input of query and key, the input of value, and the residual."""
        residual = self.input_(hidden_states)
        if self.use_bottleneck_attention:
            return residual, residual, residual
        if self.attention is not None:
            return self.attention(hidden_states), hidden_states, residual
        return hidden_states, hidden_states, residual


class TFMobileBertSelfAttention(Part):
    """Multi-head attention up to, not including, the output projection."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        inner, outer = config.true_hidden_size, config.hidden_size
        value_input = inner if config.use_bottleneck_attention else outer
        query_input = inner if config.use_bottleneck_attention or config.key_query_shared_bottleneck else outer
        self.heads, self.width = config.num_attention_heads, inner
        self.replaces_scores = config.mask_value == "-6"
        self.query = Dense(config, query_input, inner)
        self.key = Dense(config, query_input, inner)
        self.value = Dense(config, value_input, inner)
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob)

    def _split(self, x):
        shape = tf.shape(x)
        tokens = shape[1] if x.shape[1] is None else x.shape[1]
        x = tf.reshape(x, (-1 if x.shape[0] is None else x.shape[0], tokens, self.heads, self.width // self.heads))
        return tf.transpose(x, (0, 2, 1, 3))

    def call(self, query_key_input, value_input, attention_mask=None, head_mask=None, training=None):
        """Return the context (batch, tokens, true_hidden_size) and the attention probabilities.

        The mask is added to the scores; the probabilities (batch, heads, queries, keys) are those
        before dropout. head_mask multiplies them: (heads,), or None.
        """
        query = self._split(self.query(query_key_input))
        key = self._split(self.key(query_key_input))
        value = self._split(self.value(value_input))
        if self.replaces_scores and attention_mask is not None:
            # A key of zeros scores 0; the mask then adds -6 to it, which replaces the score.
            kept = tf.linalg.matrix_transpose(attention_mask) != -6
            key = key * tf.cast(kept, key.dtype)
        scores = tf.matmul(query, key, transpose_b=True) * (self.width // self.heads) ** -0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = tf.nn.softmax(scores, axis=-1)
        used = self.dropout(probabilities, training=training)
        if head_mask is not None:
            used = used * tf.cast(head_mask, used.dtype)[:, None, None]
        context = tf.transpose(tf.matmul(used, value), (0, 2, 1, 3))
        tokens = tf.shape(context)[1] if context.shape[1] is None else context.shape[1]
        batch = -1 if context.shape[0] is None else context.shape[0]
        return tf.reshape(context, (batch, tokens, self.width)), probabilities


class TFMobileBertSelfOutput(Part):
    """Output projection of attention, residual and norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.true_hidden_size, config.true_hidden_size, writes_residual=True)
        self.LayerNorm = norm(config, config.true_hidden_size)
        # Hidden dropout comes last in a block: with bottlenecks, in the output bottleneck alone.
        self.dropout = keras.layers.Dropout(0.0 if config.use_bottleneck else config.hidden_dropout_prob)

    def call(self, context, residual, training=None):
        """Return (batch, tokens, true_hidden_size)."""
        return self.LayerNorm(self.dropout(self.dense(context), training=training) + residual)


class TFMobileBertAttention(Part):
    """Self-attention with its output projection."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.self = TFMobileBertSelfAttention(config)
        self.output_ = TFMobileBertSelfOutput(config)

    def call(self, query_key_input, value_input, residual, attention_mask=None, head_mask=None, training=None):
        """Return (batch, tokens, true_hidden_size), and attention probabilities."""
        context, probabilities = self.self(query_key_input, value_input, attention_mask, head_mask, training=training)
        return self.output_(context, residual, training=training), probabilities


class TFMobileBertIntermediate(Part):
    """First half of a feed-forward network: linear and activation."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.true_hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def call(self, x):
        """Return (batch, tokens, intermediate_size)."""
        return self.activation(self.dense(x))


class TFFFNOutput(Part):
    """Second half of a stacked feed-forward network: linear, residual, norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.intermediate_size, config.true_hidden_size, writes_residual=True)
        self.LayerNorm = norm(config, config.true_hidden_size)

    def call(self, x, residual):
        """Return (batch, tokens, true_hidden_size)."""
        return self.LayerNorm(self.dense(x) + residual)


class TFFFNLayer(Part):
    """A stacked feed-forward network that is not a block's last one."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.intermediate = TFMobileBertIntermediate(config)
        self.output_ = TFFFNOutput(config)

    def call(self, x):
        """Return (batch, tokens, true_hidden_size)."""
        return self.output_(self.intermediate(x), x)


class TFOutputBottleneck(Part):
    """Linear layer back to `hidden_size`, dropout, the block's input added, norm."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.true_hidden_size, config.hidden_size, writes_residual=True)
        self.LayerNorm = norm(config, config.hidden_size)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, x, residual, training=None):
        """Return (batch, tokens, hidden_size)."""
        return self.LayerNorm(self.dropout(self.dense(x), training=training) + residual)


class TFMobileBertOutput(Part):
    """Second half of a block's last feed-forward network, then the output bottleneck if any."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.intermediate_size, config.true_hidden_size, writes_residual=True)
        self.LayerNorm = norm(config, config.true_hidden_size, eps=unset_eps(config))
        self.dropout = keras.layers.Dropout(0.0 if config.use_bottleneck else config.hidden_dropout_prob)
        self.bottleneck = TFOutputBottleneck(config) if config.use_bottleneck else None

    def call(self, x, residual, block_input, training=None):
        """Return the block's output (batch, tokens, hidden_size)."""
        x = self.LayerNorm(self.dropout(self.dense(x), training=training) + residual)
        return x if self.bottleneck is None else self.bottleneck(x, block_input, training=training)
