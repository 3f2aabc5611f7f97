"""Kernels and memory of modeling.cost against what PyTorch runs, holds and saves."""

import weakref
from unittest import mock

import pytest
import torch
import transformers
from hypothesis import given, settings
from test_cost import configurations
from torch.utils._python_dispatch import TorchDispatchMode

from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertModel, fold
from mobilebert.modeling.cost import MASK_RATE, cost
from mobilebert.modeling.presets import preset
from mobilebert.pretraining import objective

# Inference decomposes these no further. A view, or an operation that returns its input, launches no
# kernel.
IDLE = ("dropout", "detach", "_unsafe_view")
BATCH = 2


class Meter(TorchDispatchMode):
    """Count operations that compute, and bytes that live at once beside `known` tensors."""

    def __init__(self, known):
        super().__init__()
        self.kernels = self.live = self.peak = 0
        self.held = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view and func.overloadpacket.__name__ not in IDLE
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.hold(tensor.untyped_storage())
        return out

    def hold(self, storage):
        key, size = storage.data_ptr(), storage.nbytes()
        if size and key not in self.held:
            self.held.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key, size):
        self.held.discard(key)
        self.live -= size


def run(model: torch.nn.Module, seq: int) -> Meter:
    """Measure without the CPU's path, which adds biases in place: more kernels, less memory."""
    model.eval()
    ids = torch.ones(1, seq, dtype=torch.long)
    with (
        mock.patch("mobilebert.modeling.inplace.in_place", lambda *_: False),  # noqa: PT008 - a mock would keep every tensor
        torch.inference_mode(),
        Meter([ids, *model.parameters(), *model.buffers()]) as meter,
    ):
        model(ids)
    return meter


def saved(model: torch.nn.Module, **inputs) -> int:
    """Return the bytes of floating-point tensors that the backward pass will read. Weights are left
    out, and each storage counts once."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # keep the tensor, or its address would be reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**inputs)
    assert output is not None
    return sum(size for size, _ in kept.values())


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
bodies = pytest.mark.parametrize(
    "name", ["ib-bert-large", "mobilebert", "mobilebert-table1", "mobilebert-no-opt", "mobilebert-tiny", "bert-base"]
)


def body(fields: dict) -> torch.nn.Module:
    fields = dict(fields)
    if fields.pop("model_type", "mobilebert") == "bert":
        return transformers.BertModel(transformers.BertConfig(**fields), add_pooling_layer=False)
    return MobileBertModel(MobileBertConfig(**fields), add_pooling_layer=False)


@bodies
@pytest.mark.parametrize("layers", [1, 3])
def test_presets(name, layers):
    fields = preset(name, num_hidden_layers=layers, vocab_size=50, **NO_DROPOUT)
    model = body(fields)
    meter = run(model, 32)
    figures = cost(fields, 32)
    assert figures.kernels == meter.kernels
    assert figures.activation_bytes == meter.peak
    if figures.folded_kernels:
        assert figures.folded_kernels == run(fold(model), 32).kernels
    tokens = BATCH * 16
    found = saved(model.train(), input_ids=torch.ones(BATCH, 16, dtype=torch.long))
    heads = 4 * fields["hidden_size"] + 4 * MASK_RATE * (
        (3 if fields["hidden_act"] == "relu" else 4) * fields["hidden_size"] + 2 + 50
    )
    assert figures.saved_bytes_per_token - heads == pytest.approx(found / tokens, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(configurations)
def test_drawn_configurations(fields):
    model = MobileBertModel(MobileBertConfig(**fields, **NO_DROPOUT), add_pooling_layer=False)
    figures = cost(model.config.to_dict(), 8)
    meter = run(model, 8)
    assert figures.kernels == meter.kernels
    # If so narrow a model holds most in its embeddings, their padding by two tokens of eight shows.
    assert figures.activation_bytes == pytest.approx(meter.peak, rel=0.05)


@pytest.mark.parametrize("name", ["mobilebert", "mobilebert-no-opt", "bert-base"])
def test_bytes_that_pre_training_saves(name):
    """Encoder and MLM head, with logits for a share of the tokens that the formula names; the NSP
    head saves one row a sequence."""
    tokens = BATCH * 40
    count = round(MASK_RATE * tokens)
    fields = preset(name, num_hidden_layers=1, vocab_size=500, **NO_DROPOUT)
    model = objective.new_model(fields).train()
    batch = {
        "input_ids": torch.ones(BATCH, 40, dtype=torch.long),
        "masked_positions": torch.arange(count),
        "masked_labels": torch.ones(count, dtype=torch.long),
        "next_sentence_label": torch.zeros(BATCH, dtype=torch.long),
    }

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, **batch):
            return objective.loss(self.model, batch)["loss"]

    found = saved(Step(), **batch) / tokens
    assert cost(fields).saved_bytes_per_token == pytest.approx(found, rel=0.02)


def test_bytes_of_weights_and_training_state():
    fields = preset("mobilebert", num_hidden_layers=2, vocab_size=500)
    fields.pop("model_type")
    model = MobileBertForPreTraining(MobileBertConfig(**fields))
    figures = cost({"model_type": "mobilebert", **fields})
    parameters = list(model.mobilebert.parameters())
    assert figures.weight_bytes["fp32"] == sum(parameter.nbytes for parameter in parameters)
    assert figures.weight_bytes["bf16"] * 2 == figures.weight_bytes["fp32"]
    assert figures.training_state_bytes == 4 * sum(parameter.nbytes for parameter in model.parameters())


def test_hidden_states_are_freed_unless_they_are_requested():
    """Inference holds as much with 24 layers as with two."""
    small = {"vocab_size": 50, "hidden_size": 24, "intra_bottleneck_size": 16, "embedding_size": 8, "intermediate_size": 16}
    peaks = [run(body({**small, "num_hidden_layers": layers}), 32).peak for layers in (2, 24)]
    assert peaks[0] == peaks[1]
