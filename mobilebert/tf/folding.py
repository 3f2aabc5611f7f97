"""Build the folded form of a Keras model, for inference: `mobilebert.modeling.folding` has why."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import torch

from mobilebert import modeling
from mobilebert.modeling.folding import Affine, FoldedEncoder, FoldedLayer, fold
from mobilebert.tf.encoder import TFMobileBertEncoder
from mobilebert.tf.parts import ACTIVATIONS, Part, dtype_policy
from mobilebert.tf.weights import load_state_dict, state_dict


class TFAffine(Part):
    """x W + b for x (..., inputs); b is the bias or the residual stream."""

    def __init__(self, folded: Affine):
        super().__init__()
        self.weight, self.bias, self.keep = (_constant(self, array) for array in (folded.weight, folded.bias, folded.keep))

    def call(self, x, stream=None):
        """Return x W + b; with a stream, x W + stream, scaled by `keep` before if that is set."""
        added = self.bias if stream is None else stream if self.keep is None else stream * self.keep
        return tf.tensordot(x, tf.convert_to_tensor(self.weight), 1) + added


class TFFoldedLayer(Part):
    """A block with its norms folded, called like `TFMobileBertLayer`."""

    def __init__(self, folded: FoldedLayer, hidden_act: str):
        super().__init__()
        self.heads, self.width, self.replaces_scores = folded.heads, folded.width, folded.replaces_scores
        self.residual = None if folded.residual is None else TFAffine(folded.residual)
        self.query_key = None if folded.query_key is None else TFAffine(folded.query_key)
        self.projections, self.attention = TFAffine(folded.projections), TFAffine(folded.attention)
        self.up = [TFAffine(part) for part in folded.up]  # pyrefly: ignore[bad-argument-type]  (a ModuleList of Affine)
        self.down = [TFAffine(part) for part in folded.down]  # pyrefly: ignore[bad-argument-type]
        self.last = None if folded.output is None else TFAffine(folded.output)
        self.scale, self.shift = _constant(self, folded.scale), _constant(self, folded.shift)
        self.activation = ACTIVATIONS[hidden_act]

    def call(self, hidden_states, attention_mask=None, head_mask=None, training=None):
        """Return the stream (batch, tokens, hidden_size), and attention probabilities."""
        x = hidden_states if self.residual is None else self.residual(hidden_states)
        parts = self._parts(self.projections(x))
        if self.query_key is not None:
            parts = [*self._parts(self.query_key(parts[0])), *parts[1:]]
        query, key, value = map(self._split, parts[:3])
        if len(parts) > 3:
            x = parts[3]
        if self.replaces_scores and attention_mask is not None:
            key = key * tf.cast(tf.linalg.matrix_transpose(attention_mask) != -6, key.dtype)
        scores = tf.matmul(query, key, transpose_b=True)
        probabilities = tf.nn.softmax(scores if attention_mask is None else scores + attention_mask, axis=-1)
        used = probabilities if head_mask is None else probabilities * head_mask[:, None, None]
        context = tf.transpose(tf.matmul(used, value), (0, 2, 1, 3))
        x = self.attention(tf.reshape(context, (*_lengths(x)[:2], self.width)), x)
        for up, down in zip(self.up, self.down, strict=True):
            x = down(self.activation(up(x)), x)
        if self.last is not None:
            x = self.last(x, hidden_states)
        return x, probabilities

    def _parts(self, x):
        return tf.split(x, x.shape[-1] // self.width, axis=-1)

    def _split(self, x):
        return tf.transpose(tf.reshape(x, (*_lengths(x)[:2], self.heads, self.width // self.heads)), (0, 2, 1, 3))


class TFFoldedEncoder(TFMobileBertEncoder):
    """Folded blocks, one after the other."""

    def __init__(self, folded: FoldedEncoder, hidden_act: str):
        Part.__init__(self)
        layers: Any = folded.layer
        self.layer = [TFFoldedLayer(layer, hidden_act) for layer in layers]

    def state(self, stream, blocks):
        """Return the hidden state, as the model that was folded has it."""
        if not blocks:
            return stream
        last = self.layer[blocks - 1]
        return stream * last.scale + last.shift


def _lengths(x: Any) -> list[Any]:
    return [tf.shape(x)[axis] if length is None else length for axis, length in enumerate(x.shape)]


def _constant(part: Part, array: torch.Tensor | None) -> Any:
    if array is None:
        return None
    values = array.detach().numpy()
    weight = part.add_weight(shape=values.shape, initializer="zeros", trainable=False)
    weight.assign(values)
    return weight


def folded_model(model: Any) -> Any:
    """Return a copy of a Keras model with folded blocks, for inference.

    Raises UserError for a model with LayerNorm, which cannot be folded.
    """
    kind = getattr(modeling, type(model).__name__.removeprefix("TF"))
    peer = kind(model.config)
    arrays = state_dict(model)
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    folded: Any = fold(peer.eval())
    body = getattr(folded, "mobilebert", folded)
    copy = type(model).from_config(model.get_config())
    load_state_dict(copy, arrays)
    with dtype_policy(model.dtype_policy.name):
        copy.mobilebert.encoder = TFFoldedEncoder(body.encoder, model.config.hidden_act)
    return copy
