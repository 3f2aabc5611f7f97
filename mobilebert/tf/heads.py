"""Define the pre-training models in Keras, with the outputs and losses of the PyTorch classes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.tf.encoder import TFMobileBertMainLayer
from mobilebert.tf.losses import cross_entropy
from mobilebert.tf.model import TFMobileBertPreTrainedModel
from mobilebert.tf.outputs import TFLogitsOutput, TFMobileBertForPreTrainingOutput
from mobilebert.tf.parts import ACTIVATIONS, Dense, Embedding, LayerNorm, Named, Part


class TFMobileBertPredictionHeadTransform(Part):
    """Linear layer, activation and LayerNorm. Models with NoNorm have LayerNorm here too."""

    def __init__(self, config: MobileBertConfig):
        super().__init__()
        self.dense = Dense(config, config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def call(self, x):
        """Return the transformed x, (..., hidden_size)."""
        return self.LayerNorm(self.activation(self.dense(x)))


class TFMobileBertLMPredictionHead(Part):
    """Vocabulary logits, from a matrix of `hidden_size` columns.

    The first `embedding_size` columns are the word embeddings (tied, unless the configuration says
    otherwise), the others are the head's.
    """

    def __init__(self, config: MobileBertConfig, words: Embedding):
        super().__init__()
        self.transform = TFMobileBertPredictionHeadTransform(config)
        own = config.hidden_size - config.embedding_size
        self.widths = [config.embedding_size, own]
        self.dense = Dense(config, config.vocab_size, own, bias=False)
        self.bias = self.add_weight(shape=(config.vocab_size,), initializer="zeros", name="bias")
        if config.tie_word_embeddings:
            self.decoder, self.decoder_bias = words, self.bias
        else:  # PyTorch then adds the decoder's bias, and does not read the other
            self.decoder = Embedding(config, config.vocab_size, config.embedding_size)
            self.decoder_bias = self.add_weight(shape=(config.vocab_size,), initializer="zeros", name="decoder_bias")

    def own_weights(self) -> dict[str, Named]:
        """Return the bias under both of its names; they are two weights if nothing is tied."""
        return {"bias": Named(self.bias), "decoder.bias": Named(self.decoder_bias)}

    def call(self, hidden_states):
        """Return logits (..., vocab_size) for hidden states (..., hidden_size)."""
        tied, own = tf.split(self.transform(hidden_states), self.widths, axis=-1)
        words, columns = (tf.convert_to_tensor(table) for table in (self.decoder.weight, self.dense.kernel))
        logits = tf.tensordot(tied, tf.transpose(words), 1)
        if self.widths[1]:
            logits = logits + tf.tensordot(own, tf.transpose(columns), 1)
        return logits + self.decoder_bias


class TFMobileBertHeads(Part):
    """The MLM head, the NSP head, or both: what a pre-training model holds under the name `cls`."""

    def __init__(self, config: MobileBertConfig, words: Embedding | None, has_nsp: bool):
        super().__init__()
        self.predictions: Any = None if words is None else TFMobileBertLMPredictionHead(config, words)
        self.seq_relationship: Any = Dense(config, config.hidden_size, 2) if has_nsp else None


class TFMobileBertPreTrainingModel(TFMobileBertPreTrainedModel):
    """Base class of the models with an MLM head, an NSP head, or both."""

    has_mlm, has_nsp = True, True

    def __init__(self, config: MobileBertConfig, **kwargs):
        super().__init__(config, **kwargs)
        self.mobilebert = TFMobileBertMainLayer(config, add_pooling_layer=self.has_nsp)
        words = self.mobilebert.embeddings.word_embeddings if self.has_mlm else None
        self.cls = TFMobileBertHeads(config, words, self.has_nsp)


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForPreTraining(TFMobileBertPreTrainingModel):
    """A model with the MLM and the NSP head.

    labels: (batch, tokens), -100 for tokens without a target.
    next_sentence_label: (batch,), 0 for a continuation and 1 for a random sentence.
    """

    label_names = ("labels", "next_sentence_label")

    def head(self, given: dict[str, Any], training: Any) -> TFMobileBertForPreTrainingOutput:
        """Return both heads' logits."""
        outputs = self.mobilebert(training=training, **given)
        return TFMobileBertForPreTrainingOutput(
            prediction_logits=self.cls.predictions(outputs.last_hidden_state),
            seq_relationship_logits=self.cls.seq_relationship(outputs.pooler_output),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def loss_of(self, outputs: Any, labels: dict[str, Any]) -> Any:
        """Return the sum of both heads' losses."""
        masked = cross_entropy(outputs.prediction_logits, labels["labels"])
        return masked + cross_entropy(outputs.seq_relationship_logits, labels["next_sentence_label"])


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForMaskedLM(TFMobileBertPreTrainingModel):
    """A model with the MLM head alone; no pooler.

    labels: (batch, tokens), -100 for tokens without a target.
    """

    has_nsp = False
    label_names = ("labels",)

    def head(self, given: dict[str, Any], training: Any) -> TFLogitsOutput:
        """Return logits (batch, tokens, vocab)."""
        outputs = self.mobilebert(training=training, **given)
        logits = self.cls.predictions(outputs.last_hidden_state)
        return TFLogitsOutput(logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def loss_of(self, outputs: Any, labels: dict[str, Any]) -> Any:
        """Return the mean over the tokens with a target."""
        return cross_entropy(outputs.logits, labels["labels"])


@keras.saving.register_keras_serializable("mobilebert")
class TFMobileBertForNextSentencePrediction(TFMobileBertPreTrainingModel):
    """A model with the NSP head alone.

    next_sentence_label: (batch,), 0 for a continuation and 1 for a random sentence.
    """

    has_mlm = False
    label_names = ("next_sentence_label",)

    def head(self, given: dict[str, Any], training: Any) -> TFLogitsOutput:
        """Return logits (batch, 2)."""
        outputs = self.mobilebert(training=training, **given)
        logits = self.cls.seq_relationship(outputs.pooler_output)
        return TFLogitsOutput(logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def loss_of(self, outputs: Any, labels: dict[str, Any]) -> Any:
        """Return the mean cross-entropy."""
        return cross_entropy(outputs.logits, labels["next_sentence_label"])
