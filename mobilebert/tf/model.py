"""Define the base of all Keras models, and the model without a head."""

from __future__ import annotations

import os
from typing import Any

import keras

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.tf import weights
from mobilebert.tf.encoder import TFMobileBertMainLayer, check_dtype
from mobilebert.tf.inputs import gathered
from mobilebert.tf.outputs import TFModelOutput
from mobilebert.util.errors import UserError, allowed


class TFMobileBertPreTrainedModel(keras.Model):
    """Base class of the family's Keras models: loading, saving, losses.

    A subclass defines `head`, which turns the main layer's outputs into those of the model, and
    `loss_of`, which returns the loss of its outputs.
    """

    label_names: tuple[str, ...] = ()

    def __init__(self, config: MobileBertConfig, **kwargs):
        """Raise UserError unless `config` is of our class, and for a dtype policy of float16."""
        if not isinstance(config, MobileBertConfig):
            raise UserError(f"config: {type(config).__name__} of {type(config).__module__}; allowed: mobilebert.MobileBertConfig")
        check_dtype()
        super().__init__(**kwargs)
        self.config = config
        self.built = True  # every layer makes its weights at once
        self.supports_jit = False  # `fit` would compile with XLA, again for every new length

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
            raise UserError(f"{type(self).__name__}: no argument {unknown[0]!r}; {allowed(('input_ids', *named), unknown[0])}")
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

    def compute_loss(self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True):
        """Return the compiled loss of the logits or, if `compile` was given none, the model's own.

        The labels are y, or are among the inputs.
        """
        if self._compile_loss is not None:
            return super().compute_loss(x, y, self._judged(y_pred), sample_weight, training)
        if y is None:
            if y_pred is None or y_pred.get("loss") is None:
                raise UserError(f"fit: no labels; give y, or {' and '.join(self.label_names)} among the inputs")
            return y_pred["loss"]
        if sample_weight is not None:
            raise UserError("fit: the model's own loss takes no sample_weight; compile with a loss that does")
        labels = y if isinstance(y, dict) else dict(zip(self.label_names, y if isinstance(y, list | tuple) else [y]))
        if missing := [name for name in self.label_names if labels.get(name) is None]:
            raise UserError(f"fit: no labels {missing[0]}; y must hold {' and '.join(self.label_names)}")
        return self.loss_of(y_pred, labels)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return the metrics of the logits."""
        return super().compute_metrics(x, y, self._judged(y_pred), sample_weight)

    def _judged(self, y_pred: Any) -> Any:
        """Return what losses and metrics compare with labels: the logits, in a dict if several."""
        logits = {key: value for key, value in y_pred.items() if key.endswith("logits")}
        return next(iter(logits.values())) if len(logits) == 1 else logits

    # ---- configuration, loading and saving

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` reads; a `.keras` file holds it."""
        return {"config": self.config.to_dict(), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Return a new model, with random weights."""
        return cls(MobileBertConfig.from_dict(config["config"]), name=config.get("name"))

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, config: MobileBertConfig | None = None, **overrides) -> Any:
        """Return a model loaded from a folder or a hub name, whose weights PyTorch or Keras wrote.

        source: also what `mobilebert convert` reads. A head or a pooler that the checkpoint lacks
        is initialised, with a warning; weights of embeddings or encoder must be there.
        config: None for that of the checkpoint. overrides: fields of the configuration.
        Raises UserError for a checkpoint that cannot be loaded.
        """
        return weights.load(cls, source, config, overrides)

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

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Return a new model, with random weights."""
        return cls(MobileBertConfig.from_dict(config["config"]), config["add_pooling_layer"], name=config.get("name"))
