"""Compute the losses of the PyTorch classes in TensorFlow."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

IGNORED = -100  # the label of a token without a target


def cross_entropy(logits: Any, labels: Any, ignored: Any = IGNORED) -> Any:
    """Return the mean over the labels that are not `ignored`; NaN if there are none.

    logits: (..., classes). labels: integers (...), of any shape with as many elements.
    """
    logits = tf.cast(tf.reshape(logits, (-1, logits.shape[-1] or tf.shape(logits)[-1])), tf.float32)
    labels = tf.cast(tf.reshape(labels, (-1,)), tf.int32)
    counts = labels != ignored
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.where(counts, labels, 0), logits=logits)
    counts = tf.cast(counts, losses.dtype)
    return tf.reduce_sum(losses * counts) / tf.reduce_sum(counts)


def regression(logits: Any, labels: Any) -> Any:
    """Return the mean squared difference."""
    logits = tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.square(logits - tf.cast(tf.reshape(labels, tf.shape(logits)), tf.float32)))


def multi_label(logits: Any, labels: Any) -> Any:
    """Return the mean binary cross-entropy; labels are (batch, classes) of 0 and 1."""
    logits = tf.cast(logits, tf.float32)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(labels, tf.float32), logits=logits))


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
