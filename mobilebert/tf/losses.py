"""Compute the losses of the PyTorch classes in TensorFlow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

IGNORED = -100  # the label of a token without a target


def cross_entropy(logits: Any, labels: Any, ignored: Any = IGNORED) -> Any:
    """Return the mean over the labels that are not `ignored`; NaN if there are none.

    logits: (..., classes). labels: whole numbers (...), of any shape with as many elements.
    """
    logits = _precise(tf.reshape(logits, (-1, logits.shape[-1] or tf.shape(logits)[-1])))
    labels = tf.reshape(labels, (-1,))
    if not labels.dtype.is_integer:
        says = "labels: not whole numbers; a regression has num_labels=1"
        tf.debugging.assert_equal(labels, tf.round(labels), message=says)
    labels = tf.cast(labels, tf.int32)
    counts = labels != ignored
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.where(counts, labels, 0), logits=logits)
    counts = tf.cast(counts, losses.dtype)
    return tf.reduce_sum(losses * counts) / tf.reduce_sum(counts)


def regression(logits: Any, labels: Any) -> Any:
    """Return the mean squared difference."""
    logits = _precise(logits)
    return tf.reduce_mean(tf.square(logits - tf.cast(tf.reshape(labels, tf.shape(logits)), logits.dtype)))


def multi_label(logits: Any, labels: Any) -> Any:
    """Return the mean binary cross-entropy; labels are (batch, classes) of 0 and 1."""
    logits = _precise(logits)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(labels, logits.dtype), logits=logits))


def span(start_logits: Any, end_logits: Any, start_positions: Any, end_positions: Any) -> Any:
    """Return the mean of the losses of start and end.

    Positions are (batch,); the loss ignores positions beyond the sequence.
    """
    beyond = tf.shape(start_logits)[1]
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        clipped = tf.clip_by_value(tf.cast(tf.reshape(positions, (-1,)), tf.int32), 0, beyond)
        losses.append(cross_entropy(logits, clipped, ignored=beyond))
    return (losses[0] + losses[1]) / 2


def _precise(logits: Any) -> Any:
    """Return logits in float32, or in float64 if they are."""
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
