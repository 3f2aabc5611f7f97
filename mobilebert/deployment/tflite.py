"""Write the encoder of a PyTorch model as a .tflite file, through the Keras class of its family."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BertModel, PreTrainedModel

from mobilebert.modeling.configuration import MobileBertConfig
from mobilebert.modeling.encoder import MobileBertModel
from mobilebert.util.errors import UserError, one_line

SHARED = (  # fields that BERT and MobileBERT have in common
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
NO_MOBILEBERT = {  # BERT is a MobileBERT with none of these
    "trigram_input": False,
    "use_bottleneck": False,
    "use_bottleneck_attention": False,
    "key_query_shared_bottleneck": False,
    "num_feedforward_networks": 1,
    "normalization_type": "layer_norm",
}


def write_tflite(model: PreTrainedModel, path: Path, kind: str, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the model to `path` for inputs of the shape of `rows`, folded if it has NoNorm.

    model: a `MobileBertModel` or `BertModel` without a pooler. kind: of `tf.export_tflite`. rows:
    batches of inputs; "int8" takes the ranges of activations from them.

    Raises UserError for another class, and for a model that TensorFlow cannot convert.
    """
    batch, length = rows[0]["input_ids"].shape
    convert(_twin(model, fields_of(kind)), path, kind, rows, length, batch)


def fields_of(kind: str) -> dict[str, Any]:
    """Return the fields of the configuration that a file of this kind needs.

    The larger mask values of the other files would leave an int8 score none of its 256 steps; with
    -6 padded keys keep some weight.
    """
    return {"mask_value": "-6"} if kind == "int8" else {}


def keras_classes() -> Any:
    """Return the package `mobilebert.tf`; keep TensorFlow from logging its start."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from mobilebert import tf

    return tf


def convert(model: Any, path: Path, kind: str, rows: list[dict[str, np.ndarray]], length: int, batch: int = 1) -> None:
    """Write a Keras model to `path` for inputs of (batch, length), folded if it has NoNorm.

    kind: of `tf.export_tflite`; "int8" takes the ranges of activations from `rows`.

    Raises UserError if TensorFlow cannot convert the model.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        keras_classes().export_tflite(
            model,
            path,
            length,
            batch,
            kind,
            calibration=rows if kind == "int8" else None,
            fold=model.config.normalization_type == "no_norm",
        )
    except UserError:
        raise
    except Exception as error:  # the converter raises exceptions of many kinds
        raise UserError(f"{path}: TensorFlow cannot convert the model ({one_line(error)})") from error


def _twin(model: PreTrainedModel, overrides: dict[str, Any]) -> Any:
    """Return the model's Keras twin: the same weights, and outputs equal to rounding."""
    tf = keras_classes()
    arrays = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    fields = model.config.to_dict()
    if isinstance(model, MobileBertModel):
        twin = tf.TFMobileBertModel(MobileBertConfig.from_dict(fields | overrides), add_pooling_layer=False)
    elif type(model) is BertModel:
        width = fields["hidden_size"]
        shared = {name: fields[name] for name in SHARED}
        config = MobileBertConfig(**shared, **NO_MOBILEBERT, embedding_size=width, intra_bottleneck_size=width, **overrides)
        twin = tf.TFMobileBertModel(config, add_pooling_layer=False)
        # Keras builds this layer always. It is not used if embeddings are as wide as the blocks.
        unused = "embeddings.embedding_transformation"
        arrays |= {f"{unused}.weight": np.zeros((width, width), np.float32), f"{unused}.bias": np.zeros(width, np.float32)}
        norms = [twin.mobilebert.embeddings.LayerNorm, *(layer.output_.LayerNorm for layer in twin.mobilebert.encoder.layer)]
        for norm in norms:
            norm.eps = config.layer_norm_eps  # transformers' MobileBERT forgets it here, its BERT does not
    else:
        raise UserError(f"litert: {type(model).__name__} has no Keras class here; MobileBERT and BERT have")
    twin.load_state_dict(arrays)
    return twin
