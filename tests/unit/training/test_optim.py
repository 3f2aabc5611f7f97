"""LAMB and AdamW against a float64 NumPy reference of You et al. 2020 without bias correction."""

from itertools import chain

import numpy as np
import pytest
import torch
from family import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.distillation.transfer import layer_of
from mobilebert.modeling.layers import NoNorm
from mobilebert.training import optim

BETA1, EPS = 0.9, 1e-6
KINDS = ("adamw", "lamb")
SHAPES = {"dense.weight": (3, 4), "dense.bias": (3,), "LayerNorm.weight": (4,), "LayerNorm.bias": (4,), "zero": (2, 2)}
EXCLUDED = {"dense.bias", "LayerNorm.weight", "LayerNorm.bias"}


class Toy(nn.Module):
    """A float64 model with each kind of parameter; `zero` starts at zero."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.dense, self.LayerNorm = nn.Linear(4, 3), nn.LayerNorm(4)
        self.zero = nn.Parameter(torch.zeros(2, 2))
        self.double()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name != "zero":
                    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def values(model):
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def gradients(rng, scale):
    return {name: rng.normal(0, scale, shape) for name, shape in SHAPES.items()}


def reference(weights, steps, kind, rates, decay, beta2):
    """Return the weights after one update per entry of `steps` and `rates`. There is no bias
    correction, and epsilon is outside the root."""
    weights = {name: value.copy() for name, value in weights.items()}
    m = {name: np.zeros_like(value) for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in weights.items()}
    for gradient, rate in zip(steps, rates):
        for name, w in weights.items():
            m[name] = BETA1 * m[name] + (1 - BETA1) * gradient[name]
            v[name] = beta2 * v[name] + (1 - beta2) * gradient[name] ** 2
            update, ratio = m[name] / (np.sqrt(v[name]) + EPS), 1.0
            if name not in EXCLUDED:
                update = update + decay * w
                norms = np.linalg.norm(w), np.linalg.norm(update)
                if kind == "lamb" and min(norms) > 0:
                    ratio = norms[0] / norms[1]
            weights[name] = w - rate * ratio * update
    return weights


def trained(model, steps, kind, rates, decay, beta2=0.999):
    """Return the optimizer after training. The rates may be numbers or tensors."""
    optimizer = optim.make(model, kind, 1.0, decay, beta2)
    for gradient, rate in zip(steps, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradient[name].copy())
        optimizer.step()
    return optimizer


def check(kind, decay, scale, beta2, count, seed, tensors=False):
    model, rng = Toy(seed), np.random.default_rng(seed)
    start, steps = values(model), [gradients(rng, scale) for _ in range(count)]
    rates = rng.uniform(1e-4, 0.1, count)
    trained(model, steps, kind, torch.from_numpy(rates).unbind() if tensors else rates, decay, beta2)
    expected = reference(start, steps, kind, rates, decay, beta2)
    for name, found in values(model).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    decay=st.sampled_from([0.01, 0.3]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 100.0]),  # at 1e-6 the place of epsilon decides the update
    beta2=st.sampled_from([0.9, 0.98, 0.999]),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    tensors=st.booleans(),
)
def test_updates_agree_with_the_reference(kind, decay, scale, beta2, count, seed, tensors):
    """The rate is a number or a tensor."""
    check(kind, decay, scale, beta2, count, seed, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_without_decay_only_the_excluded_parameters_lose_the_trust_ratio(kind):
    check(kind, decay=0.0, scale=1.0, beta2=0.999, count=3, seed=5)


@pytest.mark.parametrize("kind", KINDS)
def test_first_step_has_no_bias_correction(kind):
    """m = g/10, v = g^2/1000: every entry of the first update is 10^0.5 long; Adam's would be 1."""
    model = Toy(0)
    before = values(model)
    trained(model, [{name: np.full(shape, 2.0) for name, shape in SHAPES.items()}], kind, [0.01], 0.01)
    moved = before["dense.bias"] - values(model)["dense.bias"]
    np.testing.assert_allclose(moved, 0.01 * 10**0.5, rtol=1e-4)


def test_lambs_step_is_the_rate_times_the_weights_norm():
    model = Toy(1)
    before = values(model)["dense.weight"]
    trained(model, [gradients(np.random.default_rng(0), 5.0)], "lamb", [0.02], 0.01)
    moved = np.linalg.norm(values(model)["dense.weight"] - before)
    assert moved == pytest.approx(0.02 * np.linalg.norm(before), rel=1e-9)


def test_lamb_leaves_zeros_without_a_gradient_at_zero():
    model = Toy(2)
    trained(model, [{name: np.zeros(shape) for name, shape in SHAPES.items()}], "lamb", [0.1], 0.1)
    assert (values(model)["zero"] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tensors", [False, True])
def test_a_groups_rate_multiplies_its_learning_rate(kind, tensors):
    """Rate 0 leaves weights and moments alone; a tenth moves a tenth."""
    gradient = gradients(np.random.default_rng(3), 1.0)

    def moved(rate):
        model = Toy(3)
        optimizer = optim.make(model, kind, 0.05, 0.01, group=lambda name: name.startswith("dense"))
        parameters = dict(model.named_parameters())
        for group in optimizer.param_groups:
            if tensors:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
            if any(p is parameters["dense.weight"] or p is parameters["dense.bias"] for p in group["params"]):
                group["rate"] = rate
        before = values(model)
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradient[name].copy())
        optimizer.step()
        after = values(model)
        state = {name for name, parameter in parameters.items() if optimizer.state.get(parameter)}
        return {name: after[name] - before[name] for name in after}, state

    (full, everyone), (tenth, _), (none, rest) = moved(1.0), moved(0.1), moved(0.0)
    assert everyone == set(SHAPES)
    assert rest == {name for name in SHAPES if not name.startswith("dense")}
    for name in SHAPES:
        factors = (0.1, 0.0) if name.startswith("dense") else (1.0, 1.0)
        np.testing.assert_allclose(tenth[name], factors[0] * full[name], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(none[name], factors[1] * full[name], rtol=1e-9, atol=1e-15)
        assert np.abs(full[name]).max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_without_gradient_does_not_move(kind):
    model = Toy(4)
    before, optimizer = values(model), optim.make(model, kind, 0.1, 0.1)
    model.dense.weight.grad = torch.ones(3, 4, dtype=torch.float64)
    optimizer.step()
    moved = {name for name, value in values(model).items() if (value != before[name]).any()}
    assert moved == {"dense.weight"}


# --- real parameter names


@pytest.fixture(scope="module", params=["no_norm", "layer_norm"])
def mobilebert(request):
    config = MobileBertConfig(**TINY, normalization_type=request.param, classifier_activation=True)
    return MobileBertForPreTraining(config)


def test_exclusions_are_the_norms_and_the_biases(mobilebert):
    norms = {
        f"{place}.{name}"
        for place, module in mobilebert.named_modules()
        if isinstance(module, NoNorm | nn.LayerNorm)
        for name, _ in module.named_parameters()
    }
    names = {name for name, _ in mobilebert.named_parameters()}
    biases = {name for name in names if name.split(".")[-1] == "bias"}
    kinds = {type(module) for module in mobilebert.modules()} & {NoNorm, nn.LayerNorm}
    assert (NoNorm in kinds) == (mobilebert.config.normalization_type == "no_norm")
    assert len(norms) == 2 * (2 + 2 * 6)  # weight and bias of the norms of embeddings, head and two blocks (six each)
    assert {name for name in names if optim.is_excluded(name)} == norms | biases
    matrices = {name for name, parameter in mobilebert.named_parameters() if parameter.dim() == 2}
    assert names - norms - biases == matrices


def test_groups_hold_every_parameter_once(mobilebert):
    optimizer = optim.make(mobilebert, "lamb", 1e-3, 0.01, group=layer_of)
    names = {id(parameter): name for name, parameter in mobilebert.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert sorted(chain.from_iterable(found)) == sorted(names.values())
    assert len(found) == 6  # outside, layer 0, layer 1; each with and without decay
    for group, members in zip(optimizer.param_groups, found):
        assert len({(layer_of(name), optim.is_excluded(name)) for name in members}) == 1
        assert group["weight_decay"] == (0.0 if optim.is_excluded(members[0]) else 0.01)
        assert group["rate"] == 1.0
