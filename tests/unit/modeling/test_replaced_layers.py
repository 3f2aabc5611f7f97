"""Adapters, quantizers and pruning work on our models as on transformers'."""

import functools

import pytest
import torch
from family import HEADS, agree_in_gradients, batch, close, gradients
from peers import MODES, WEIGHTS, both, first
from torch.nn.utils import parametrizations, prune

from mobilebert import fold
from mobilebert.util.errors import UserError


class Wrapped(torch.nn.Module):
    """An adapter with neither weight nor widths, whose backward reads its own output."""

    def __init__(self, linear):
        super().__init__()
        self.inner = linear

    def forward(self, x):
        return torch.tanh(self.inner(x))


class Integers(torch.nn.Module):
    """A linear layer as quantizers leave it, with an integer `weight`."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.scale, self.bias)


def replace(model, kind):
    for name, part in list(model.named_modules()):
        if type(part) is torch.nn.Linear and not name.startswith("cls.predictions"):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, kind(part))


@pytest.mark.parametrize("kind", [Wrapped, Integers])
@pytest.mark.parametrize("head", HEADS)
def test_models_with_replaced_layers_agree_with_transformers(head, kind):
    ours, theirs = both(head)
    replace(ours, kind)
    replace(theirs, kind)
    inputs = batch(head, True)
    for mode in MODES.values():
        with mode():
            close(first(ours(**inputs)), first(theirs(**inputs)))
    if kind is Wrapped:
        agree_in_gradients(gradients(ours, ours(**inputs)), gradients(theirs, theirs(**inputs)), floor=1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", HEADS)
def test_torchs_dynamic_quantization_takes_every_model(head):
    ours, theirs = both(head)
    inputs = batch(head, True)
    quantized = torch.ao.quantization.quantize_dynamic(ours, {torch.nn.Linear}, dtype=torch.qint8)
    found = first(quantized(**inputs))
    close(found, first(ours(**inputs)), 0.1)
    if head not in ("ForPreTraining", "ForMaskedLM"):  # theirs would read the decoder's weight, which is now a method
        peer = torch.ao.quantization.quantize_dynamic(theirs, {torch.nn.Linear}, dtype=torch.qint8)
        close(found, first(peer(**inputs)), 1e-4)


halve = functools.partial(prune.l1_unstructured, name="weight", amount=0.5)


def normalize(part):
    parametrizations.weight_norm(part) if part.weight.dim() > 1 else halve(part)


@pytest.mark.parametrize("how", [halve, normalize], ids=["pruned", "normalized"])
@pytest.mark.parametrize(
    "path",
    [f"embeddings.{name}" for name in ("position_embeddings", "token_type_embeddings", "LayerNorm")] + WEIGHTS,
)
def test_pruned_and_parametrized_layers_follow_their_own_weights(path, how):
    models = both("Model")
    for model in models:
        part = model.get_submodule(path)
        how(part)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.mul_(2)  # as a step of training does: a weight computed before is now outdated
    for mode in MODES.values():
        with mode():
            ours, theirs = (model(batch("Model", False)["input_ids"]).last_hidden_state for model in models)
            close(ours, theirs)


def test_a_layer_without_bias_and_a_wrapped_table_agree_with_transformers():
    models = both("Model")
    for model in models:
        model.encoder.layer[0].output.dense.bias = None
        model.embeddings.position_embeddings = Wrapped(model.embeddings.position_embeddings)
    for mode in MODES.values():
        with mode():
            ours, theirs = (model(batch("Model", False)["input_ids"]).last_hidden_state for model in models)
            close(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", ["adapter", "quantized", "pruned", "hook"])
def test_a_block_with_replaced_pruned_or_hooked_layers_is_not_folded(change):
    model, _ = both("Model")
    dense = model.encoder.layer[1].intermediate.dense
    if change == "adapter":
        model.encoder.layer[1].intermediate.dense = Wrapped(dense)
    elif change == "quantized":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    elif change == "pruned":
        halve(dense)
    else:
        dense.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"encoder\.layer\.[01]\.\S+ is no plain Linear"):
        fold(model)
