"""Define the base of all Keras models, and the model without a head."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.tf import weights
from mobilebert.tf.encoder import TFMobileBertMainLayer, check_dtype
from mobilebert.tf.inputs import InputError, arrays_of, gathered
from mobilebert.tf.outputs import TFModelOutput
from mobilebert.tf.parts import dtype_policy, set_trainable_parts, trainable_parts
from mobilebert.util.errors import UserError, allowed


class TFMobileBertPreTrainedModel(keras.Model):
    """Base class of the family's Keras models: loading, saving, losses.

    A subclass defines `head`, which turns the main layer's outputs into those of the model, and
    `loss_of`, which returns the loss of its outputs.
    """

    label_names: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ("batch", "tokens")  # of the inputs

    def __init__(self, config: MobileBertConfig, **kwargs):
        """Raise UserError unless `config` is of our class, and for a dtype policy of float16."""
        if not isinstance(config, MobileBertConfig):
            raise UserError(f"config: {type(config).__name__} of {type(config).__module__}; allowed: mobilebert.MobileBertConfig")
        check_dtype(kwargs.get("dtype"))
        super().__init__(autocast=False, **kwargs)  # labels would be cast; the layers cast what they read
        self.config = config
        self.built = True  # every layer makes its weights at once
        self.supports_jit = False  # the default of `fit` would be XLA, which compiles again for every new length

    def __call__(self, *args, **kwargs):
        """Call the model; see `call`. The first input may also be what a tokenizer returns."""
        if args:
            args = (arrays_of(args[0]), *args[1:])
        return super().__call__(*args, **kwargs)

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
        return_dict=None,
        training=None,
        **labels,
    ):
        """Return transformers' outputs for transformers' arguments.

        input_ids: (batch, tokens); or all inputs as a dictionary or in a list.
        attention_mask: (batch, tokens), 1 for a token and 0 for padding; or (batch, 1, queries,
            keys), boolean (True attends) or additive.
        head_mask: (heads,) or (layers, heads), which multiplies the attention probabilities.
        labels: those of `label_names`. If all are given, the outputs have a loss.
        return_dict: False for a tuple.
        """
        named = {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "head_mask": head_mask,
            "inputs_embeds": inputs_embeds,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
        } | dict.fromkeys(self.label_names)
        if unknown := [name for name in labels if name not in self.label_names]:
            raise InputError(f"{type(self).__name__}: no argument {unknown[0]!r}; {allowed(('input_ids', *named), unknown[0])}")
        given = gathered(input_ids, named | labels)
        return_dict = given.pop("return_dict")
        targets = {name: given.pop(name) for name in self.label_names}
        outputs = self.head(given, training)
        if targets and all(value is not None for value in targets.values()):
            outputs = type(outputs)(**{**outputs, "loss": self.loss_of(outputs, targets)})
        return outputs if return_dict in (None, True) else outputs.to_tuple()

    def head(self, given: dict[str, Any], training: Any) -> TFModelOutput:
        """Return the model's outputs, without a loss."""
        raise NotImplementedError

    def loss_of(self, outputs: TFModelOutput, labels: dict[str, Any]) -> Any:
        """Return the scalar loss of outputs."""
        raise NotImplementedError

    # ---- compile and fit

    @keras.Model.jit_compile.setter
    def jit_compile(self, value):
        """Set whether `fit` compiles with XLA; it does if `compile` was told so."""
        self.supports_jit = bool(value)
        keras.Model.jit_compile.fset(self, value)
        self.supports_jit = False

    def compute_loss(self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True):
        """Return the compiled loss of the logits or, if `compile` was given none, the model's own.

        The labels are y, or are among the inputs.
        """
        if self._compile_loss is not None:
            logits = self._judged(y_pred)
            return super().compute_loss(x, self._wanted(x, y, logits), logits, sample_weight, training)
        if y is None:
            if y_pred is None or y_pred.get("loss") is None:
                raise UserError(f"fit: no labels; give y, or {' and '.join(self.label_names)} among the inputs")
            return y_pred["loss"]
        if sample_weight is not None:
            raise UserError("fit: the model's own loss takes no sample_weight or class_weight; compile with a loss that does")
        labels = y if isinstance(y, dict) else dict(zip(self.label_names, y if isinstance(y, list | tuple) else [y]))
        if missing := [name for name in self.label_names if labels.get(name) is None]:
            raise UserError(f"fit: no labels {missing[0]}; y must hold {' and '.join(self.label_names)}")
        return self.loss_of(y_pred, labels)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return the metrics of the logits."""
        logits = self._judged(y_pred)
        return super().compute_metrics(x, self._wanted(x, y, logits), logits, sample_weight)

    def _judged(self, y_pred: Any) -> Any:
        """Return what losses and metrics compare with labels: the logits, in a dict if several."""
        logits = {key: value for key, value in y_pred.items() if key.endswith("logits")}
        return next(iter(logits.values())) if len(logits) == 1 else logits

    def _wanted(self, x: Any, y: Any, logits: Any) -> Any:
        """Return labels in the structure of the logits; they are y, or are among the inputs."""
        labels = x if y is None else y
        if not isinstance(labels, Mapping) or not self.label_names or not set(self.label_names) <= set(labels):
            return y
        found = [labels[name] for name in self.label_names]
        return dict(zip(logits, found)) if isinstance(logits, dict) else found[0]

    # ---- configuration, loading and saving

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` reads; a `.keras` file holds it."""
        own = {"config": self.config.to_dict(), "name": self.name, "dtype": self.dtype_policy.name}
        return own | {"trainable": self.trainable, "trainable_parts": trainable_parts(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Return a new model, with random weights."""
        optional = {name: config[name] for name in ("name", "add_pooling_layer") if name in config}
        with dtype_policy(config.get("dtype")):
            model = cls(MobileBertConfig.from_dict(config["config"]), **optional)
        if not config.get("trainable", True):
            model.trainable = False
        set_trainable_parts(model, config.get("trainable_parts", {}))
        return model

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Write the model for serving, as Keras does.

        input_signature: None for a dictionary of input_ids, attention_mask and token_type_ids,
            int32, of any batch and length.
        """
        if input_signature is None:
            shape = (None,) * len(self.dimensions)
            names = ("input_ids", "attention_mask", "token_type_ids")
            input_signature = [{name: keras.InputSpec(shape=shape, dtype="int32", name=name) for name in names}]
        super().export(filepath, format, verbose, input_signature, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        config: MobileBertConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        **overrides,
    ) -> Any:
        """Return a model loaded from a folder or a hub name, whose weights PyTorch or Keras wrote.

        source: also what `mobilebert convert` reads. A head or a pooler that the checkpoint lacks
        is initialised, with a warning; weights of embeddings or encoder must be there.
        config: None for that of the checkpoint. overrides: fields of the configuration.
        ignore_mismatched_sizes: whether weights of the head that have another shape, as for other
            labels, are initialised.
        Raises UserError for a checkpoint that cannot be loaded.
        """
        return weights.load(cls, source, config, overrides, ignore_mismatched_sizes)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, with PyTorch's names, into a folder.

        The PyTorch classes, ours and transformers', read it.
        """
        weights.save(self, folder)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights as NumPy arrays, with PyTorch's names and shapes."""
        return weights.state_dict(self)

    def load_state_dict(self, arrays: dict[str, Any]) -> None:
        """Set the weights from arrays with PyTorch's names and shapes.

        Raises UserError if a weight is missing, unknown or of another shape.
        """
        weights.load_state_dict(self, arrays)


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertModel(TFMobileBertPreTrainedModel):
    """Embeddings, encoder and pooler."""

    def __init__(self, config: MobileBertConfig, add_pooling_layer: bool = True, **kwargs):
        super().__init__(config, **kwargs)
        self.mobilebert = TFMobileBertMainLayer(config, add_pooling_layer)

    def head(self, given: dict[str, Any], training: Any) -> TFModelOutput:
        """Return the main layer's outputs."""
        return self.mobilebert(training=training, **given)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, and whether there is a pooler."""
        return super().get_config() | {"add_pooling_layer": self.mobilebert.pooler is not None}
