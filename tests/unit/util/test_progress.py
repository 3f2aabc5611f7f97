"""The speed of a training, by a clock that the test moves."""

import pytest
import torch

from mobilebert.modeling.cost import cost
from mobilebert.modeling.presets import preset
from mobilebert.util import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def batches(clock, waits):
    for wait in waits:
        clock.now += wait
        yield wait


def run(clock, speed, waits, steps, tokens=60, flops=None, stages=None):
    for _, seconds, stage in zip(speed.waiting(batches(clock, waits)), steps, stages or [None] * len(steps)):
        clock.now += seconds
        speed.step(tokens, flops, stage)


def test_the_first_step_is_counted_apart(clock):
    speed = progress.Speed(None)
    run(clock, speed, [1, 0.5, 0.25], [9, 2, 1.25])
    assert speed.figures() == {"tokens_per_second": 120 / 4, "data_wait_share": 0.75 / 4, "first_step_seconds": 10}
    assert str(speed) == "30 tokens/s, data wait 18.8%"
    assert speed.seconds == 14


def test_the_only_step_is_counted(clock):
    speed = progress.Speed(None)
    run(clock, speed, [1], [2])
    assert speed.figures() == {"tokens_per_second": 20, "data_wait_share": 1 / 3, "first_step_seconds": 3}


def test_mfu_is_the_models_flops_over_the_devices_peak(clock, monkeypatch):
    """A teacher of 293M parameters runs at 200,000 tokens/s on a device with a known peak."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    flops = cost(preset("ib-bert-large"), 128).training_flops_per_token
    speed = progress.Speed(progress.peak_flops("cuda"))
    run(clock, speed, [0, 0], [1, 1], tokens=200_000, flops=200_000 * flops)
    assert speed.figures()["mfu"] == pytest.approx(200_000 * flops / 989e12)
    assert f"MFU {200_000 * flops / 989e12:.1%}" in str(speed)


def test_each_stage_has_figures_of_its_own_its_first_step_apart(clock):
    """Three stages of 3, 2 and 1 steps with 60 tokens and 600 FLOPs, on a device of 1000 FLOP/s. A
    resumed training may begin within any stage. Saving a state between two steps takes a second of
    its stage."""
    speed = progress.Speed(1000.0)
    run(clock, speed, [1, 0.5, 0.5], [9, 1.5, 3.5], flops=600, stages=[4, 4, 4])
    clock.now += 1
    run(clock, speed, [0, 2, 1], [7, 2, 4], flops=600, stages=[5, 5, 6])
    assert speed.figures()["stages"] == [
        {"stage": 4, "steps": 3, "tokens_per_second": 120 / 6, "data_wait_share": 1 / 6, "mfu": 1200 / 6 / 1000},
        {"stage": 5, "steps": 2, "tokens_per_second": 60 / 4, "data_wait_share": 2 / 4, "mfu": 600 / 4 / 1000},
        {"stage": 6, "steps": 1, "tokens_per_second": 60 / 5, "data_wait_share": 1 / 5, "mfu": 600 / 5 / 1000},
    ]
    assert speed.figures()["tokens_per_second"] == 300 / 23  # all steps but the first


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_known_for_the_devices_of_the_table_alone(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert progress.peak_flops("cuda") == peak
    assert progress.peak_flops("cpu") is None
