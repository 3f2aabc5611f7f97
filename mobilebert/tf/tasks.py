"""Define the fine-tuning models in Keras, with the outputs and losses of the PyTorch classes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.tf.encoder import TFMobileBertMainLayer
from mobilebert.tf.inputs import check_shape
from mobilebert.tf.losses import cross_entropy, multi_label, regression, span
from mobilebert.tf.model import TFMobileBertPreTrainedModel
from mobilebert.tf.outputs import TFLogitsOutput, TFQuestionAnsweringModelOutput
from mobilebert.tf.parts import Dense


class TFMobileBertClassifier(TFMobileBertPreTrainedModel):
    """Base class of the models with dropout and a linear layer named `classifier`."""

    reads_pooled = True
    label_names = ("labels",)

    def __init__(self, config: MobileBertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.mobilebert = TFMobileBertMainLayer(config, add_pooling_layer=self.reads_pooled)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = keras.layers.Dropout(rate)
        self.classifier = Dense(config, config.hidden_size, self.outputs_of(config))

    def outputs_of(self, config: MobileBertConfig) -> int:
        """Return the number of logits."""
        return len(config.id2label or ())

    def head(self, given: dict[str, Any], training: Any) -> TFLogitsOutput:
        """Return the classifier's logits."""
        outputs = self.mobilebert(training=training, **given)
        read = outputs.pooler_output if self.reads_pooled else outputs.last_hidden_state
        logits = self.classifier(self.dropout(read, training=training))
        return TFLogitsOutput(logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def loss_of(self, outputs: Any, labels: dict[str, Any]) -> Any:
        """Return the mean cross-entropy."""
        return cross_entropy(outputs.logits, labels["labels"])


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForSequenceClassification(TFMobileBertClassifier):
    """A classifier of the pooled first token, as for GLUE.

    labels: (batch,) classes or values, or (batch, num_labels). The first labels set
    `config.problem_type` if it is None: regression if `num_labels` is 1, single-label if they are
    integers or one for each row, else multi-label.
    """

    def loss_of(self, outputs: Any, labels: dict[str, Any]) -> Any:
        """Return the loss of the problem type."""
        given = tf.convert_to_tensor(labels["labels"])
        if self.config.problem_type is None:
            if self.config.num_labels == 1:
                self.config.problem_type = "regression"
            elif given.dtype.is_integer or len(given.shape) == 1 or given.shape[-1] == 1:
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        losses = {
            "regression": regression,
            "single_label_classification": cross_entropy,
            "multi_label_classification": multi_label,
        }
        return losses[self.config.problem_type](outputs.logits, given)


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForMultipleChoice(TFMobileBertClassifier):
    """A model that scores each choice; its inputs are (batch, choices, tokens).

    labels: (batch,), the right choices.
    """

    dimensions = ("batch", "choices", "tokens")

    def outputs_of(self, config: MobileBertConfig) -> int:
        """Return 1: each choice has a score."""
        return 1

    def head(self, given: dict[str, Any], training: Any) -> TFLogitsOutput:
        """Return logits (batch, choices)."""
        check_shape(given["input_ids"], given["inputs_embeds"], self.dimensions)
        first = given["inputs_embeds"] if given["input_ids"] is None else given["input_ids"]
        choices = tf.shape(first)[1] if first.shape[1] is None else first.shape[1]
        flat = {
            name: tf.reshape(value, (-1, *_lengths(value)[2:])) if tf.is_tensor(value) and name != "head_mask" else value
            for name, value in given.items()
        }
        outputs = super().head(flat, training)
        outputs["logits"] = tf.reshape(outputs.logits, (-1, choices))
        return outputs


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForTokenClassification(TFMobileBertClassifier):
    """A classifier of each token.

    labels: (batch, tokens), -100 for tokens without a target.
    """

    reads_pooled = False


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForQuestionAnswering(TFMobileBertPreTrainedModel):
    """A model that finds the start and the end of an answer, as for SQuAD.

    start_positions, end_positions: (batch,); the loss ignores those beyond the sequence.
    """

    label_names = ("start_positions", "end_positions")

    def __init__(self, config: MobileBertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.mobilebert = TFMobileBertMainLayer(config, add_pooling_layer=False)
        self.qa_outputs = Dense(config, config.hidden_size, len(config.id2label or ()))

    def head(self, given: dict[str, Any], training: Any) -> TFQuestionAnsweringModelOutput:
        """Return start and end logits, (batch, tokens) each."""
        outputs = self.mobilebert(training=training, **given)
        start, end = tf.unstack(self.qa_outputs(outputs.last_hidden_state), axis=-1)
        return TFQuestionAnsweringModelOutput(
            start_logits=start, end_logits=end, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def loss_of(self, outputs: Any, labels: dict[str, Any]) -> Any:
        """Return the mean of the losses of start and end."""
        return span(outputs.start_logits, outputs.end_logits, labels["start_positions"], labels["end_positions"])


def _lengths(value: Any) -> list[Any]:
    """Return a tensor's shape, with tensors for the dimensions that are not known yet."""
    return [tf.shape(value)[axis] if length is None else length for axis, length in enumerate(value.shape)]
