"""Build small Keras models beside our PyTorch ones on the same weights, and compare them."""

import numpy as np
import torch
from family import SMALL, batch, close

import mobilebert
from mobilebert import MobileBertConfig
from mobilebert import tf as keras_models

DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


def pair(head: str, **fields):
    """Return a Keras model and our PyTorch one on the same weights, so wide that each matters."""
    fields = SMALL | DROPOUTS | {"num_labels": 2 if head == "ForQuestionAnswering" else 3} | fields
    torch.manual_seed(0)
    theirs = getattr(mobilebert, f"MobileBert{head}")(MobileBertConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "LayerNorm" in name or "bias" in name else 0.15))
    ours = getattr(keras_models, f"TFMobileBert{head}")(MobileBertConfig(**fields))
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return ours, theirs


def inputs_of(head: str, padded: bool):
    """Return the inputs of PyTorch's class, and the same as arrays with the names of Keras's."""
    inputs = batch(head, padded)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    if head == "ForNextSentencePrediction":
        arrays["next_sentence_label"] = arrays.pop("labels")
    return inputs, arrays


def agree(ours, theirs, tolerance=1e-5):
    """Compare all outputs, by name and in their order."""
    assert list(ours) == list(theirs)
    for key in theirs:
        several = key in ("hidden_states", "attentions")
        pairs = zip(ours[key], theirs[key], strict=True) if several else [(ours[key], theirs[key])]
        for mine, peer in pairs:
            close(np.asarray(mine), peer, tolerance)
