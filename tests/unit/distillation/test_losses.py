"""Every loss against its formula in float64 NumPy, every gradient against central differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from mobilebert.distillation import losses

EXAMPLES = settings(max_examples=40, deadline=None)


# --- the formulas


def mean(values, mask):
    """Return the mean over the real tokens, or over all of them without a mask."""
    return values.mean() if mask is None else values[mask.astype(bool)].mean()


def feature_map(s, t, mask=None):
    return mean(((s - t) ** 2).mean(-1), mask)


def standardized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)


def normalized_feature_map(s, t, mask=None):
    return feature_map(standardized(s), standardized(t), mask)


def means(s, t, mask=None):
    return mean((s.mean(-1) - t.mean(-1)) ** 2, mask)


def variances(s, t, mask=None):
    return mean(np.abs(s.var(-1) - t.var(-1)), mask)


STATISTICS = {"means": 0, "variances": 1}


def function_of(name):
    """Return the loss of that name as a function of features. `means` and `variances` take
    `losses.statistics` of them."""
    loss = getattr(losses, name)
    if name not in STATISTICS:
        return loss
    return lambda s, t, mask=None: loss(*(losses.statistics(x)[STATISTICS[name]] for x in (s, t)), mask)


def attention(s, t, mask=None, cross_entropy=False):
    terms = -t * np.log(s) + (0 if cross_entropy else t * np.log(t))
    return mean(terms.sum(-1).mean(1), mask)


def soft_labels(s, t, cross_entropy=False):
    p = softmax(t, -1)
    return (p * ((0 if cross_entropy else log_softmax(t, -1)) - log_softmax(s, -1))).sum(-1).mean()


FEATURES = (feature_map, normalized_feature_map, means, variances)


# --- inputs


@st.composite
def pairs(draw):
    """Return features (2, B, T, C), attention maps (2, B, H, T, T) and a mask (B, T). The leading 2
    is (student, teacher). Every row of the mask has at least one real token."""
    batch, tokens, heads = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    channels, scale = draw(st.integers(4, 9)), draw(st.sampled_from([0.5, 1.0, 3.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    features = rng.normal(0.3, scale, (2, batch, tokens, channels)).astype(np.float32)
    maps = softmax(rng.normal(0, scale, (2, batch, heads, tokens, tokens)), -1).astype(np.float32)
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, (batch, 1))).astype(np.int64)
    return features, maps, mask


def numpy_of(function, *arrays, **options):
    return function(*(np.asarray(a, np.float64) for a in arrays), **options)


def torch_of(name, *arrays, **options):
    options = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    return function_of(name)(*(torch.from_numpy(a) for a in arrays), **options).item()


def close(value, expected, double=False):
    """Compare with NumPy to 1e-6; in float32 a few more roundings (6e-8) of terms that cancel."""
    assert value == pytest.approx(expected, rel=1e-6 if double else 1e-6 * 5, abs=1e-12 if double else 1e-6)


def agrees(name, arrays, **options):
    """Compare the loss of that name with its formula, in float32 and in float64."""
    expected = numpy_of(globals()[name], *arrays, **options)
    close(torch_of(name, *arrays, **options), expected)
    close(torch_of(name, *(np.asarray(a, np.float64) for a in arrays), **options), expected, double=True)


# --- values


@EXAMPLES
@given(pairs(), st.booleans())
def test_feature_losses_are_their_formulas(case, masked):
    features, _, mask = case
    for formula in FEATURES:
        options = {"mask": mask} if masked else {}
        agrees(formula.__name__, features, **options)


@EXAMPLES
@given(pairs(), st.booleans(), st.booleans())
def test_attention_is_its_formula(case, masked, cross_entropy):
    _, maps, mask = case
    options = {"mask": mask if masked else None, "cross_entropy": cross_entropy}
    agrees("attention", maps, **options)


@EXAMPLES
@given(st.integers(1, 8), st.integers(2, 30), st.integers(0, 2**32), st.booleans())
def test_soft_labels_are_their_formula(positions, vocabulary, seed, cross_entropy):
    logits = np.random.default_rng(seed).normal(0, 3, (2, positions, vocabulary)).astype(np.float32)
    options = {"cross_entropy": cross_entropy}
    agrees("soft_labels", logits, **options)


@EXAMPLES
@given(st.integers(1, 8), st.integers(2, 30), st.integers(0, 2**32), st.floats(0, 1), st.booleans())
def test_pretraining_distillation_mixes_hard_and_soft(positions, vocabulary, seed, alpha, cross_entropy):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (2, positions, vocabulary)).astype(np.float32)
    labels = rng.integers(0, vocabulary, positions)
    expected = -log_softmax(logits[0].astype(np.float64), -1)[np.arange(positions), labels].mean()
    kd = numpy_of(soft_labels, *logits, cross_entropy=cross_entropy)
    for kind in (np.float32, np.float64):
        student, teacher = (torch.from_numpy(x.astype(kind)) for x in logits)
        mixed, hard, soft = losses.pretraining_distillation(student, teacher, torch.from_numpy(labels), alpha, cross_entropy)
        assert hard == losses.masked_lm(student, torch.from_numpy(labels))
        close(hard.item(), expected, kind is np.float64)
        close(soft.item(), kd, kind is np.float64)
        close(mixed.item(), alpha * expected + (1 - alpha) * kd, kind is np.float64)


@EXAMPLES
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_next_sentence_is_the_cross_entropy_of_two_classes(rows, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (rows, 2)), rng.integers(0, 2, rows)
    expected = np.log1p(np.exp(logits[np.arange(rows), 1 - labels] - logits[np.arange(rows), labels])).mean()
    for kind in (np.float32, np.float64):
        found = losses.next_sentence(torch.from_numpy(logits.astype(kind)), torch.from_numpy(labels))
        close(found.item(), expected, kind is np.float64)


@EXAMPLES
@given(pairs())
def test_losses_are_zero_for_equal_models_and_not_negative(case):
    (student, teacher), (mine, theirs), mask = case
    for formula in FEATURES:
        assert torch_of(formula.__name__, teacher, teacher, mask=mask) == 0
        assert torch_of(formula.__name__, student, teacher, mask=mask) > 0
    assert abs(torch_of("attention", theirs, theirs, mask=mask)) < 1e-6
    assert torch_of("attention", mine, theirs, mask=mask) > -1e-6


def test_attention_of_a_masked_key_is_finite():
    """A padded key has probability 0 on both sides: 0 log 0 is 0, and its gradient is not NaN."""
    maps = torch.tensor([[[[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]])
    student = maps.clone().requires_grad_()
    loss = losses.attention(student, maps)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert torch.isfinite(student.grad).all()


@EXAMPLES
@given(pairs())
def test_padding_does_not_matter(case):
    (student, teacher), (mine, theirs), mask = case
    padded = mask == 0
    other = student.copy()
    other[padded] += 17.0
    for formula in FEATURES:
        name = formula.__name__
        assert torch_of(name, other, teacher, mask=mask) == torch_of(name, student, teacher, mask=mask)
    turned = np.where(padded[:, None, :, None], mine[..., ::-1], mine).copy()  # the padded queries' rows, reversed
    assert torch_of("attention", turned, theirs, mask=mask) == torch_of("attention", mine, theirs, mask=mask)
    if padded.any():
        assert torch_of("feature_map", other, teacher) != torch_of("feature_map", student, teacher)


# --- gradients


def central_differences(function, x, h=1e-5):
    x, gradient = x.astype(np.float64), np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (function(up) - function(down)) / (2 * h)
    return gradient


def gradient(function, x):
    leaf = torch.from_numpy(x).requires_grad_()
    function(leaf).backward()
    return leaf.grad.numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("formula", FEATURES)
def test_feature_gradients(formula, masked):
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(0.2, 1.0, (2, 2, 3, 5)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 0]]) if masked else None
    wide = teacher.astype(np.float64)
    expected = central_differences(lambda x: formula(x, wide, mask), student)
    tensor = None if mask is None else torch.from_numpy(mask)
    function = function_of(formula.__name__)
    found = gradient(lambda x: function(x, torch.from_numpy(teacher), tensor), student)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    exact = gradient(lambda x: function(x, torch.from_numpy(wide), tensor), student.astype(np.float64))
    np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-9)
    assert np.abs(found).max() > 1e-3
    if masked:
        assert (found[1, 1:] == 0).all()


def test_attention_and_soft_label_gradients_do_not_see_the_teachers_entropy():
    rng = np.random.default_rng(2)
    maps = softmax(rng.normal(0, 1, (2, 2, 2, 3, 3)), -1).astype(np.float32)
    logits = rng.normal(0, 1, (2, 4, 7)).astype(np.float32)
    for name, (student, teacher), formula in (("attention", maps, attention), ("soft_labels", logits, soft_labels)):
        function, guide = getattr(losses, name), torch.from_numpy(teacher)
        wide = teacher.astype(np.float64)
        expected = central_differences(lambda x, f=formula, w=wide: f(x, w), student)
        for cross_entropy in (False, True):
            found = gradient(lambda x, c=cross_entropy, f=function, g=guide: f(x, g, cross_entropy=c), student)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            exact = student.astype(np.float64)
            found = gradient(lambda x, c=cross_entropy, f=function, g=guide: f(x, g.double(), cross_entropy=c), exact)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_gradients_of_the_hard_labels():
    """Check masked LM, next-sentence prediction and the mix of hard and soft labels."""
    rng = np.random.default_rng(6)
    logits, other, labels = rng.normal(0, 1, (4, 2)), torch.from_numpy(rng.normal(0, 1, (4, 2))), torch.tensor([0, 1, 1, 0])
    for function in (
        lambda x: losses.masked_lm(x, labels),
        lambda x: losses.next_sentence(x, labels),
        lambda x: losses.pretraining_distillation(x, other, labels, 0.3)[0],
    ):
        expected = central_differences(lambda x, f=function: f(torch.from_numpy(x)).item(), logits)
        np.testing.assert_allclose(gradient(function, logits.copy()), expected, rtol=1e-6, atol=1e-9)
        assert np.abs(expected).max() > 1e-2


@EXAMPLES
@given(pairs(), st.integers(0, 1000))
def test_cross_entropy_is_kl_plus_the_teachers_entropy(case, seed):
    _, (mine, theirs), mask = case
    wide = theirs.astype(np.float64)
    entropy = mean(-(wide * np.log(wide)).sum(-1).mean(1), mask)
    difference = torch_of("attention", mine, theirs, mask=mask, cross_entropy=True) - torch_of(
        "attention", mine, theirs, mask=mask
    )
    assert difference == pytest.approx(entropy, rel=1e-5, abs=2e-6)
    student, teacher = np.random.default_rng(seed).normal(0, 2, (2, 3, 6)).astype(np.float32)
    p = softmax(teacher.astype(np.float64), -1)
    difference = torch_of("soft_labels", student, teacher, cross_entropy=True) - torch_of("soft_labels", student, teacher)
    assert difference == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-5, abs=2e-6)


# --- both recipes


def layer_agrees(expected, case, recipe, chosen, factors, statistics=None):
    """Compare `losses.layer` of the case with the expected value, in float32 and in float64."""
    (student, teacher), (mine, theirs), mask = case
    for kind in (np.float32, np.float64):
        pair = [
            {"features": torch.from_numpy(features.astype(kind)), "attention": torch.from_numpy(maps.astype(kind))}
            for features, maps in ((student, mine), (teacher, theirs))
        ]
        if statistics is not None:
            pair[1]["statistics"] = losses.statistics(torch.from_numpy(statistics.astype(kind)))
        close(losses.layer(*pair, recipe, chosen, factors, torch.from_numpy(mask)).item(), expected, kind is np.float64)


def test_factors_are_those_of_the_released_command():
    assert losses.FACTORS == {"paper": (1.0, 0.0, 0.0, 1.0), "released": (100.0, 5000.0, 5.0, 1.0)}


@EXAMPLES
@given(pairs(), st.sampled_from([("fmt", "at"), ("fmt",), ("at",)]))
def test_paper_layer(case, chosen):
    features, maps, mask = case
    expected = 0.0
    if "fmt" in chosen:
        expected += 2.0 * numpy_of(feature_map, *features, mask=mask)
    if "at" in chosen:
        expected += 3.0 * numpy_of(attention, *maps, mask=mask)
    layer_agrees(expected, case, "paper", chosen, (2.0, 0.0, 0.0, 3.0))


@EXAMPLES
@given(pairs(), st.sampled_from([("fmt", "at"), ("fmt",), ("at",)]), st.integers(0, 1000))
def test_released_layer_averages_the_teachers_statistics_over_its_layers(case, chosen, seed):
    """All positions count, mask or not; means and variances run over all the teacher's states."""
    features, maps, _ = case
    rng = np.random.default_rng(seed)
    stack = rng.normal(0, 1, (4, *features[1].shape)).astype(np.float32)
    feature, beta, gamma, attend = factors = losses.FACTORS["released"]
    expected = 0.0
    if "fmt" in chosen:
        expected += feature * numpy_of(normalized_feature_map, *features)
        expected += np.mean([beta * numpy_of(means, features[0], state) for state in stack])
        expected += np.mean([gamma * numpy_of(variances, features[0], state) for state in stack])
    if "at" in chosen:
        expected += attend * numpy_of(attention, *maps, cross_entropy=True)
    layer_agrees(expected, case, "released", chosen, factors, stack)


def test_released_layer_without_a_stack_compares_with_its_own_teacher_layer():
    rng = np.random.default_rng(3)
    features = rng.normal(0, 1, (2, 2, 3, 5)).astype(np.float32)
    pair = [{"features": torch.from_numpy(x)} for x in features]
    expected = 7.0 * numpy_of(means, *features) + 11.0 * numpy_of(variances, *features)
    close(losses.layer(*pair, "released", ("fmt",), (0.0, 7.0, 11.0, 0.0)).item(), expected)


def test_bfloat16_features_are_compared_in_float32():
    rng = np.random.default_rng(4)
    student, teacher = (torch.from_numpy(x).bfloat16() for x in rng.normal(0, 1, (2, 2, 3, 8)).astype(np.float32))
    for formula in FEATURES:
        found = function_of(formula.__name__)(student, teacher)
        assert found.dtype == torch.float32
        close(found.item(), numpy_of(formula, student.float().numpy(), teacher.float().numpy()))
