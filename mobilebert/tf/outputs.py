"""Define the outputs of the Keras models, with the names that transformers gave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras.src import tree  # its public part cannot register a class
from transformers.utils.generic import ModelOutput


@dataclass
class TFModelOutput(ModelOutput):
    """An output that Keras may take apart and put together again, as `predict` does for batches."""

    def tree_flatten(self):
        """Return the values that are there, their names, and the names as a path's entries."""
        return tuple(self.values()), tuple(self.keys()), tuple(self.keys())

    @classmethod
    def tree_unflatten(cls, names, values):
        """Return the output with these values."""
        return cls(**dict(zip(names, values)))


@tree.register_tree_node_class
@dataclass
class TFBaseModelOutputWithPooling(TFModelOutput):
    """Outputs of `TFMobileBertModel`."""

    last_hidden_state: Any = None
    pooler_output: Any = None
    hidden_states: Any = None
    attentions: Any = None


@tree.register_tree_node_class
@dataclass
class TFMobileBertForPreTrainingOutput(TFModelOutput):
    """Outputs of `TFMobileBertForPreTraining`.

    prediction_logits: (batch, tokens, vocab). seq_relationship_logits: (batch, 2).
    """

    loss: Any = None
    prediction_logits: Any = None
    seq_relationship_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@tree.register_tree_node_class
@dataclass
class TFLogitsOutput(TFModelOutput):
    """Outputs of the models with one head; `logits` are as in the PyTorch class."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@tree.register_tree_node_class
@dataclass
class TFQuestionAnsweringModelOutput(TFModelOutput):
    """Outputs of `TFMobileBertForQuestionAnswering`; the logits are (batch, tokens) each."""

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None
