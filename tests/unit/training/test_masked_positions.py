"""Masked positions that fill up to a fixed number, so that a graph has one shape."""

import pytest
import torch
from graph_workloads import ROWS, batch, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilebert.training.batches import fill_up, split

torch.set_num_threads(1)


@settings(max_examples=25, deadline=None)
@given(
    step=st.integers(0, 10**6),
    parts=st.integers(1, 3),
    predictions=st.integers(3, 7),
    kind=st.sampled_from(["pretrain", "bert", "distill", "released"]),
)
def test_masked_positions_that_fill_up_change_no_loss_and_no_gradient(step, parts, predictions, kind):
    student, _, task = workload(kind, dtype=torch.float64)

    def learn(part):
        student.zero_grad()
        found = task.loss(part, 0)
        found["loss"].backward()
        return {key: value.item() for key, value in found.items()}, torch.cat([p.grad.flatten() for p in student.parameters()])

    for part in split(batch(step), parts):
        full = fill_up(part, predictions)
        assert len(full["masked_positions"]) == len(full["masked_labels"]) == predictions * len(part["input_ids"])
        (losses, gradients), (expected, others) = learn(full), learn(part)
        assert losses == pytest.approx(expected, rel=1e-6)
        assert (gradients - others).norm() <= 1e-6 * others.norm()


def test_micro_batches_without_or_with_more_masked_positions_are_not_filled_up():
    found = batch(0)
    plain = {"input_ids": found["input_ids"]}
    assert fill_up(plain, 3) is plain
    assert len(found["masked_positions"]) > ROWS
    assert fill_up(found, 1) is found
