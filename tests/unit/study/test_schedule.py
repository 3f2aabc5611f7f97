"""Learning-rate multipliers at their end points, and the stages of progressive transfer."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.distillation.transfer import Transfer, layer_of
from mobilebert.pretraining import common
from mobilebert.pretraining.common import make_plan
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.study.schedule import linear, stage, stage_curve
from mobilebert.study.stage_config import TrainingConfig, TransferConfig
from mobilebert.training import optim


def test_linear_end_points():
    assert linear(0, 500_000, 10_000) == 1 / 10_000
    assert linear(9_999, 500_000, 10_000) == 1.0
    assert linear(10_000, 500_000, 10_000) == 1.0
    assert linear(255_000, 500_000, 10_000) == pytest.approx(0.5)
    assert linear(500_000, 500_000, 10_000) == 0.0
    assert linear(500_000, 500_000, 10_000, end=1e-4) == pytest.approx(1e-4)
    assert linear(255_000, 500_000, 10_000, end=0.5) == pytest.approx(0.75)


def test_linear_without_warmup_starts_at_the_peak():
    assert [linear(step, 4, 0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@given(st.data(), st.integers(2, 2000), st.sampled_from([0.0, 1e-4, 0.3]))
def test_linear_rises_then_falls_in_equal_steps(data, steps, end):
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [linear(step, steps, warmup, end) for step in range(steps)]
    assert max(rates) == pytest.approx(1.0, abs=1e-12)
    assert min(rates) >= min(end, 1 / max(1, warmup)) - 1e-12
    rises = [b - a for a, b in pairwise(rates[:warmup])]
    assert rises == pytest.approx([1 / warmup] * len(rises) if warmup else [])
    falls = [a - b for a, b in pairwise(rates[warmup:])]
    assert falls == pytest.approx([(1 - end) / (steps - warmup)] * len(falls))


def test_stages_at_full_scale():
    """Paper section 3.5: 240,000 steps over 24 layers, 10,000 each."""
    for layer in range(24):
        assert stage(10_000 * layer, 240_000, 24) == (layer, 0, 10_000)
        assert stage(10_000 * layer + 9_999, 240_000, 24) == (layer, 9_999, 10_000)


def test_a_remainder_goes_to_the_last_layer():
    table = [stage(step, 11, 4) for step in range(11)]
    assert [layer for layer, _, _ in table] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert [within for _, within, _ in table] == [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 4]
    assert [length for _, _, length in table] == [2] * 6 + [5] * 5


@given(st.integers(1, 30), st.integers(0, 400))
def test_stages_follow_one_another(layers, more):
    steps = layers + more
    table = [stage(step, steps, layers) for step in range(steps)]
    each = steps // layers
    wanted = [each] * (layers - 1) + [steps - each * (layers - 1)]
    expected = [(layer, within, length) for layer, length in enumerate(wanted) for within in range(length)]
    assert table == expected


def test_stage_curve_at_full_scale():
    curve = [stage_curve(step, 10_000) for step in range(10_000)]
    assert curve[0] == 1 / 1000
    assert curve[499] == 0.5
    assert curve[999] == curve[1000] == 1.0
    assert curve[1000 + 2250] == pytest.approx(0.95)  # a quarter of the way: half of the fall
    assert curve[-1] == pytest.approx(0.9, abs=1e-5)
    assert stage_curve(10_000, 10_000) == pytest.approx(0.9)


@given(st.integers(1, 500))
def test_stage_curve_rises_in_the_first_tenth_and_then_falls_to_nine_tenths(steps):
    curve, warmup = [stage_curve(step, steps) for step in range(steps)], max(1, steps // 10)
    assert all(a < b for a, b in pairwise(curve[:warmup]))
    assert curve[warmup - 1] == 1.0
    assert all(a >= b for a, b in pairwise(curve[warmup:]))
    assert all(0.9 <= rate <= 1.0 for rate in curve[warmup:])


TINY = {"num_hidden_layers": 24, "hidden_size": 8, "embedding_size": 4, "intra_bottleneck_size": 4, "intermediate_size": 4}


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_table_of_progressive_transfer_at_full_scale(recipe):
    """The study `paper` has 240,000 steps, 10,000 a layer.

    That layer learns at the full rate, those below at a tenth, those above not at all. The peak
    rate is 0.0015, three times that in the released recipe. In each stage the rate rises over the
    first tenth, then falls as a square root to nine tenths. The models have the real depth; widths
    do not matter to a schedule.
    """
    study = load_study("paper").model_copy(update={"recipe": recipe})
    config = build_graph(study)["transfer/mobilebert"].settings(TransferConfig)
    fields = {**TINY, "vocab_size": 9, "max_position_embeddings": 4, "num_attention_heads": 2, "num_feedforward_networks": 1}
    student, teacher = (MobileBertForPreTraining(MobileBertConfig(**fields)) for _ in range(2))
    transfer = Transfer(student, teacher, config)
    optimizer = optim.make(student, config.optimizer, config.learning_rate, config.weight_decay, group=layer_of)
    prepare = transfer.prepare(optimizer)
    layers = {id(p): layer_of(name) for name, p in student.named_parameters()}
    peak = 0.0015 * (3 if recipe == "released" else 1)
    expected = {0: 0.001, 499: 0.5, 999: 1.0, 1000: 1.0, 3250: 0.95, 9999: 1 - 0.1 * (8999 / 9000) ** 0.5}
    for current in range(24):
        for within, share in expected.items():
            step = 10_000 * current + within
            prepare(step)
            assert transfer.depth(step) == (current + 1, range(current, current + 1))
            for group in optimizer.param_groups:
                layer = layers[id(group["params"][0])]
                multiplier = 1.0 if layer == current else 0.1 if 0 <= layer < current else 0.0
                rate = group["lr"] * group["rate"] * transfer.rate(step)
                assert rate == pytest.approx(peak * share * multiplier), (step, layer)
    assert config.steps == 240_000


@pytest.mark.parametrize(("recipe", "end"), [("paper", 0.0), ("released", 1.5e-7)])
def test_pre_training_and_distillation_at_full_scale(recipe, end):
    """500,000 steps with a warm-up of 10,000 to 0.0015; the released decay ends at 1e-4 of it."""
    graph = build_graph(load_study("paper").model_copy(update={"recipe": recipe}))
    for key in ("pretrain/ib-bert-large", "distill/mobilebert"):
        config = graph[key].settings(TrainingConfig)
        assert (config.steps, config.warmup_steps, config.learning_rate) == (500_000, 10_000, 0.0015)
        run = SimpleNamespace(job=graph[key], settings=graph[key].settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common.objective, "batches", lambda *arguments: None)
            task = make_plan(run, load_study("paper"), None, None)
        rates = [config.learning_rate * task.rate(step) for step in (0, 9_999, 255_000, 499_999)]
        middle, last = (0.0015 + end) / 2, end + (0.0015 - end) / 490_000
        assert rates == pytest.approx([1.5e-7, 0.0015, middle, last])
