"""Define the smallest Keras layers, and the names that their weights have in PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.util.errors import UserError

if keras.backend.backend() != "tensorflow":
    raise UserError(f"keras: its backend is {keras.backend.backend()}; set KERAS_BACKEND=tensorflow for mobilebert.tf")

ACTIVATIONS = {
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
}
TORCH_LAYER_NORM_EPS = 1e-5


class Named(NamedTuple):
    """A weight of a Keras layer, and whether PyTorch holds its transpose."""

    variable: Any
    is_transposed: bool = False


class Part(keras.layers.Layer):
    """A layer that makes its weights at once, so that a model can be loaded before its first call.

    An attribute has the name of PyTorch's module. Keras reserves `input` and `output`, so these two
    are called `input_` and `output_`.
    """

    def __init__(self):
        super().__init__()
        self.built = True

    def own_weights(self) -> dict[str, Named]:
        """Return this layer's own weights by PyTorch's name, without those of its parts."""
        return {}

    def named_weights(self, prefix: str = "") -> Iterator[tuple[str, Named]]:
        """Yield the weights of this layer and its parts with their names in PyTorch."""
        yield from ((prefix + name, named) for name, named in self.own_weights().items())
        yield from weights_of_parts(self, prefix)


def weights_of_parts(layer: Any, prefix: str = "") -> Iterator[tuple[str, Named]]:
    """Yield the named weights of every part that is an attribute of a layer or a model."""
    for name, part in _parts(layer):
        yield from part.named_weights(f"{prefix}{name}.")


def _parts(layer: Any) -> Iterator[tuple[str, Part]]:
    """Yield the parts that are attributes of a layer or a model, with their names in PyTorch."""
    for name, value in vars(layer).items():
        if name.startswith("_"):  # Keras's own lists of layers
            continue
        if isinstance(value, Part):
            yield name.rstrip("_"), value
        if isinstance(value, list | tuple):
            yield from ((f"{name}.{index}", part) for index, part in enumerate(value) if isinstance(part, Part))


@contextlib.contextmanager
def dtype_policy(name: str | None) -> Iterator[None]:
    """Set Keras's global dtype policy for a block; None leaves it."""
    before = keras.config.dtype_policy()
    if name in (None, before.name):
        yield
        return
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def trainable_parts(layer: Any, prefix: str = "") -> dict[str, bool]:
    """Return `trainable` of the parts, at any depth, in which it is not that of the part around."""
    found = {}
    for name, part in _parts(layer):
        if part.trainable != layer.trainable:
            found[prefix + name] = part.trainable
        found |= trainable_parts(part, f"{prefix}{name}.")
    return found


def set_trainable_parts(layer: Any, wanted: Mapping[str, bool], prefix: str = "") -> None:
    """Set `trainable` of parts; the others follow the part around them."""
    for name, part in _parts(layer):
        if prefix + name in wanted:
            part.trainable = wanted[prefix + name]
        set_trainable_parts(part, wanted, f"{prefix}{name}.")


def normal(config: MobileBertConfig, writes_residual: bool = False) -> keras.initializers.Initializer:
    """Return the initializer Normal(0, initializer_range); see `residual_init_scale`."""
    return keras.initializers.RandomNormal(
        stddev=config.initializer_range * (config.residual_init_scale if writes_residual else 1)
    )


class Dense(Part):
    """A linear layer. Keras holds (inputs, outputs), PyTorch the transpose."""

    def __init__(self, config: MobileBertConfig, inputs: int, outputs: int, bias: bool = True, writes_residual: bool = False):
        super().__init__()
        self.kernel = self.add_weight(shape=(inputs, outputs), initializer=normal(config, writes_residual), name="kernel")
        self.bias = self.add_weight(shape=(outputs,), initializer="zeros", name="bias") if bias else None

    def own_weights(self) -> dict[str, Named]:
        """Return weight and bias."""
        return {"weight": Named(self.kernel, True)} | ({} if self.bias is None else {"bias": Named(self.bias)})

    def call(self, x):
        """Return (..., outputs) for x (..., inputs)."""
        # A product of two matrices: TensorFlow Lite makes a fully connected layer of it.
        x = tf.tensordot(x, tf.convert_to_tensor(self.kernel), 1)
        return x if self.bias is None else x + self.bias


class Embedding(Part):
    """A table of vectors."""

    def __init__(self, config: MobileBertConfig, rows: int, width: int):
        super().__init__()
        self.rows, self.width = rows, width
        self.weight = self.add_weight(shape=(rows, width), initializer=normal(config), name="weight")

    def own_weights(self) -> dict[str, Named]:
        """Return the table."""
        return {"weight": Named(self.weight)}

    def call(self, ids):
        """Return the rows of the ids, (..., width)."""
        return tf.gather(tf.convert_to_tensor(self.weight), ids)


class NoNorm(Part):
    """Element-wise `weight * x + bias`, which replaces LayerNorm in the paper (equation 2)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = self.add_weight(shape=(width,), initializer="ones", name="weight")
        self.bias = self.add_weight(shape=(width,), initializer="zeros", name="bias")

    def own_weights(self) -> dict[str, Named]:
        """Return weight and bias."""
        return {"weight": Named(self.weight), "bias": Named(self.bias)}

    def call(self, x):
        """Return `weight * x + bias`, of x's shape."""
        return x * self.weight + self.bias


class LayerNorm(NoNorm):
    """Normalise over the last dimension, then scale and shift."""

    def __init__(self, width: int, eps: float):
        super().__init__(width)
        self.eps = eps

    def call(self, x):
        """Return the normalised x, of x's shape."""
        mean = tf.reduce_mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = tf.reduce_mean(centred * centred, axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self.eps) * self.weight + self.bias


def norm(config: MobileBertConfig, width: int, eps: float | None = None) -> NoNorm:
    """Return the configured norm over `width` features; `eps` defaults to the configuration's."""
    if config.normalization_type == "no_norm":
        return NoNorm(width)
    return LayerNorm(width, config.layer_norm_eps if eps is None else eps)


def unset_eps(config: MobileBertConfig) -> float:
    """Return the epsilon of the two norms for which transformers forgets `layer_norm_eps`.

    `mobilebert.modeling.layers.unset_eps` has the reason.
    """
    return TORCH_LAYER_NORM_EPS if config.is_built_by_transformers else config.layer_norm_eps
