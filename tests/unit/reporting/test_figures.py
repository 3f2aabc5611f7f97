"""The page's charts: they draw what runs produced, at the right places, and nothing else."""

import math
import re

import pytest
from short_records import of, record

from mobilebert.reporting.chart import Curve, Dot, Interval, can_be_drawn, curves, dots, intervals
from mobilebert.reporting.figures import MOST, figures


def figure(records, name, claims=None):
    (found,) = [item for item in figures(records, claims) if item.id == name]
    return found


def titles(found):
    return [panel.title for panel in found.panels]


def circles(svg):
    return [tuple(map(float, pair)) for pair in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]


def line(svg):
    (points,) = re.findall(r'points="([^"]*)"', svg)
    return [tuple(map(float, point.split(","))) for point in points.split()]


SIZE = {"hidden_size": 512, "num_hidden_layers": 24, "intermediate_size": 512}
LATENCY = record(
    "latency",
    config={"engines": ["pytorch"], "architectures": {"bert-base": SIZE, "mobilebert": SIZE}},
    metrics={"bert-base/pytorch:p50_ms": 30.0, "mobilebert/pytorch:p50_ms": 10.0},
)
SCORES = (
    record("finetune/bert-base/sst2", config={"architecture": SIZE}, metrics={"accuracy": 0.9}),
    record("finetune/mobilebert/sst2", config={"architecture": SIZE}, metrics={"accuracy": 0.8, "failed_share": 1.0}),
)
SMALL = record("finetune/bert-base/sst2", config={"architecture": SIZE | {"num_hidden_layers": 4}}, metrics={"accuracy": 0.9})


def test_losses_of_one_kind_share_an_axis_and_others_do_not():
    parts = {"train_mlm": [(0, 5.0), (1, 4.0)], "train_kd": [(0, 1.0), (1, 0.5)], "train_heldout_mlm": [(0, 6.0), (1, 4.5)]}
    records = of(
        record("pretrain/bert-base", curves={"train_mlm": [(0, 6.0), (1, 5.0)]}),
        record("distill/mobilebert", curves=parts, metrics={"unigram_entropy": 4.9}),
        record("transfer/mobilebert", curves={"train_loss": [(0, 9.0), (1, 1.0)], "own": [(0, 1.0), (1, 2.0)]}),
        record("finetune/mobilebert/sst2", curves={"seed0_loss": [(0, 0.7), (9, 0.1)], "seed1_loss": [(0, 0.6), (9, 0.2)]}),
    )
    found = figure(records, "curves")
    assert titles(found) == [
        "Masked words, held-out text (nats)",
        "Masked words, in training (nats)",
        "Distillation: teacher's word predictions (PD)",
        "Knowledge transfer: teacher's layers",
        "transfer: own",
        "Fine-tuning: sst2",
    ]
    held, trained, *_, tuned = found.panels
    assert [name for _, name, _ in trained.legend] == ["bert-base", "mobilebert"]
    assert "word frequencies" in held.svg
    assert "word frequencies" not in trained.svg
    assert tuned.svg.count("<polyline") == 2
    assert [name for _, name, _ in tuned.legend] == ["mobilebert"]


def test_a_long_curve_is_averaged_and_keeps_its_mean():
    points = [(step, float(step % 7)) for step in range(12 * MOST)]
    panel = figure(of(record("pretrain/bert-base", curves={"train_mlm": points})), "curves").panels[0]
    assert len(line(panel.svg)) == MOST
    means = [math.fsum(value for _, value in points[start : start + 12]) / 12 for start in range(0, len(points), 12)]
    heights = [y for _, y in line(panel.svg)]
    assert max(heights) - min(heights) > 0
    assert heights.index(min(heights)) == means.index(max(means))


def test_points_that_are_not_numbers_are_left_out():
    assert figure(of(record("pretrain/bert-base", curves={"train_mlm": [(0, None), (1, 1e300)]})), "curves").panels == []
    assert figure({}, "curves").text == "No record has curves."


def test_accuracy_over_latency_marks_models_that_did_not_learn():
    found = figure(of(LATENCY, *SCORES), "tradeoff")
    assert titles(found) == ["SST-2: accuracy (%), measured here", "GLUE score, published (Table 4)"]
    measured = found.panels[0].svg
    assert measured.count("hollow") == 1
    (mobile_x, mobile_y), (base_x, base_y) = circles(measured)
    assert mobile_x < base_x  # faster to the left
    assert mobile_y > base_y  # a lower score lower in the picture
    assert "mobilebert 80.0 in 10 ms" in measured


def test_accuracy_over_latency_has_a_point_for_every_model_and_engine_that_was_scored():
    names = ("pytorch", "onnxruntime-int8", "openvino-int8", "litert-int8")
    times = dict(zip(names, (30.0, 20.0, 15.0, 5.0)))
    metrics = {f"{model}/{engine}:p50_ms": time for model in ("bert-base", "mobilebert") for engine, time in times.items()}
    timing = record(
        "latency", config={"engines": list(names), "architectures": {"bert-base": SIZE, "mobilebert": SIZE}}, metrics=metrics
    )
    int8 = {"accuracy": 0.78, "openvino-int8:accuracy": 0.79}
    found = figure(of(timing, *SCORES, record("quantize/mobilebert/sst2", metrics=int8)), "tradeoff")
    svg = found.panels[0].svg
    assert len(circles(svg)) == 4  # bert-base was not quantized; nothing was scored in LiteRT
    for text in ("mobilebert on pytorch 80.0 in 30 ms", "mobilebert on openvino-int8 79.0 in 15 ms", "bert-base on pytorch 90.0"):
        assert text in svg
    assert svg.count(">mobilebert<") == svg.count(">bert-base<") == 1  # beside the fastest point
    assert "mobilebert on onnxruntime-int8 78.0 in 20 ms" in svg
    assert [svg.count(f'text-anchor="middle">{number}<') for number in (1, 2, 3, 4)] == [2, 1, 1, 0]
    assert "1 pytorch, 2 onnxruntime-int8, 3 openvino-int8, 4 litert-int8" in found.text


@pytest.mark.parametrize(
    ("records", "text"),
    [
        (of(*SCORES), "no timing among the records"),
        (of(LATENCY), "no two models"),
        (of(LATENCY, SMALL, SCORES[1]), "the times are of other sizes than the scores"),
        (of(record("latency", "void", reason="other programs ran"), *SCORES), "the timing is void (other programs ran"),
    ],
)
def test_without_values_the_chart_is_not_drawn_and_the_page_says_why(records, text):
    found = figure(records, "tradeoff")
    assert not found.panels
    assert text in found.text


def test_the_loss_at_the_end_has_a_point_for_every_seed():
    metrics = {"heldout_mlm_loss": 3.0, "unigram_entropy": 5.0}
    records = of(
        record("distill/mobilebert", metrics=metrics, row="mobilebert"),
        record("distill/mobilebert-seed-1", metrics=metrics | {"heldout_mlm_loss": 3.5}, row="mobilebert", pretraining_seed=1),
        record("pretrain/scratch", metrics=metrics | {"heldout_mlm_loss": 4.0}),
        record("pretrain/bert-base", "diverged", metrics=metrics),
    )
    (panel,) = figure(records, "ablations").panels
    assert len(circles(panel.svg)) == 3
    assert panel.svg.index(">mobilebert<") < panel.svg.index(">scratch<")  # best first
    assert ">3.250, 2 seeds<" in panel.svg
    assert "bert-base" not in panel.svg


def test_claims_of_one_unit_share_a_panel():
    def claim(axis, *effects):
        return {"axis": axis, "limit": 0.05, "effects": effects}

    def effect(name, low=None, high=None):
        return {"name": name, "value": 0.2, "low": low, "high": high, "text": "+0.200 nat"}

    rows = [claim("nats", effect("one", 0.1, 0.3)), claim("nats", effect("two")), claim("points", effect("three")), claim("nats")]
    found = figure({}, "ablations", {"rows": rows})
    assert titles(found) == ["Claims, in nats", "Claims, in points"]
    assert found.panels[0].svg.count('class="interval"') == 1
    assert found.panels[0].svg.count('class="mark"') == 2


def test_figures_are_the_same_bytes_each_time():
    records = of(LATENCY, *SCORES, record("pretrain/bert-base", curves={"train_mlm": [(0, 6.0), (1, 5.0)]}))
    assert figures(records) == figures(records)


def test_a_curve_spans_its_axes():
    (left, top), (right, bottom) = line(curves("c", [Curve(0, [(0.0, 10.0), (100.0, 0.0)])], "step"))
    assert left < right
    assert top < bottom
    assert left >= 0
    assert right <= 380


@pytest.mark.parametrize("value", [0.0, -1e139, 1e139, 1e-29, 5e-324, -1e-310, 5.0])
def test_a_constant_of_any_size_can_be_drawn(value):
    for svg in (
        curves("c", [Curve(0, [(0.0, value), (1.0, value)])], "step"),
        dots("d", [Dot("a", 0, abs(value), value)], "ms"),
        intervals("i", [Interval("a", "", (value,), value, value, value)], "nats"),
    ):
        assert "nan" not in svg
        assert "inf" not in svg


def test_names_of_close_points_do_not_cover_one_another():
    svg = dots("d", [Dot("a", 0, 10.0, 50.0), Dot("b", 1, 10.1, 50.01), Dot("c", 2, 1.0, 90.0)], "ms")
    heights = [float(re.search(rf'y="([\d.]+)"[^>]*>{name}<', svg)[1]) for name in "ab"]
    assert abs(heights[0] - heights[1]) >= 12


def test_words_in_a_chart_are_escaped():
    svg = intervals("<a>", [Interval("<b>", "<c>", (1.0,))], "<d>")
    assert not re.search("<[abcd]>", svg)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan, 1e140, None])
def test_a_value_that_no_picture_holds_is_not_drawn(value):
    assert not can_be_drawn(1.0, value)


@pytest.mark.parametrize(("low", "high"), [(0.0, 5e-324), (-5e-324, 0.0), (0.0, 1e-299), (-1e139, 1e139), (1.0, 1 + 2e-16)])
def test_a_range_of_any_size_can_be_drawn(low, high):
    for svg in (
        curves("c", [Curve(0, [(0.0, low), (1.0, high)])], "step"),
        dots("d", [Dot("a", 0, abs(low), low), Dot("b", 0, abs(high), high)], "ms"),
        intervals("i", [Interval("a", "", (low, high), low, high)], "nats"),
    ):
        assert "nan" not in svg
        assert "inf" not in svg
