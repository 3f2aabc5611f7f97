"""Dropout drawn for each row: its share and scale, and independence of how a batch is split."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from family import LAYOUTS, SMALL
from toy_training import Stop, new_run, padded, stop_at, weights

from mobilebert.pretraining import objective
from mobilebert.training import optim
from mobilebert.training.dropout import RowDropout, row_seeds
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan

torch.set_num_threads(1)
ROWS = 6
SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
}
RATES = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
ARCHITECTURES = {
    "bert": {"model_type": "bert", **SIZES, **RATES},
    "mobilebert": {"model_type": "mobilebert", **SMALL, **RATES, "vocab_size": 31},
    "no bottleneck": {"model_type": "mobilebert", **SMALL, **RATES, "vocab_size": 31, **LAYOUTS["no bottleneck"]},
}


def drawn(first=0, count=ROWS, seed=1, step=2, x=None):
    """Return states after dropout, and attention probabilities after dropout."""
    x = torch.ones(count, 8, 16) if x is None else x
    with RowDropout(row_seeds(seed, step, first, count)):
        states = F.dropout(x, 0.3)
        query = torch.zeros(count, 2, 8, 8)
        context = F.scaled_dot_product_attention(query, query, torch.eye(8).expand(count, 2, 8, 8), dropout_p=0.25)
    return states, context


@pytest.mark.parametrize("bounds", [(0, 3, 6), (0, 1, 2, 3, 4, 5, 6), (0, 4, 6)])
def test_a_row_draws_the_same_dropout_in_any_split(bounds):
    whole = drawn()
    parts = [drawn(first, end - first) for first, end in itertools.pairwise(bounds)]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_rows_steps_and_seeds_draw_different_dropout():
    found = [row for options in ({}, {"step": 3}, {"seed": 2}) for row in drawn(**options)[0]]
    assert all(not torch.equal(a, b) for index, a in enumerate(found) for b in found[:index])


def test_the_share_that_is_dropped_and_the_scale_of_the_rest():
    """Counts are within five standard deviations of a binomial's mean."""
    states, context = drawn(count=200)
    for left, rate, value in ((states, 0.3, 1 / 0.7), (context, 0.25, 1 / 8 / 0.75)):
        assert torch.all((left == 0) | ((left - value).abs() < 1e-6))
        count = left.numel()
        assert abs((left == 0).sum().item() - rate * count) < 5 * math.sqrt(count * rate * (1 - rate))


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_attention_agrees_with_torchs_if_nothing_is_dropped(kind):
    """At a rate of a millionth nothing is dropped here; the gradients agree too."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None]
    additive = torch.zeros(real.shape, dtype=torch.float64).masked_fill(~real, torch.finfo(torch.float64).min)
    mask = {"none": None, "bool": real, "additive": additive}[kind]
    with RowDropout(row_seeds(0, 0, 0, 2)):
        mine = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=1e-6)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert (mine - theirs).abs().max() < 1e-5
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), (query, key, value)) for x in (mine, theirs)), strict=True):
        assert (a - b).abs().max() < 1e-4


def test_evaluation_and_a_rate_of_zero_drop_nothing():
    x = torch.randn(ROWS, 4)
    with RowDropout(row_seeds(0, 0, 0, ROWS)):
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert torch.equal(F.dropout(x, 0.0), x)


def test_a_tensor_that_is_not_by_rows_is_refused():
    with (
        RowDropout(row_seeds(0, 0, 0, ROWS)),
        pytest.raises(ValueError, match=r"\(5, 4\): its first dimension is not the 6 rows"),
    ):
        F.dropout(torch.ones(5, 4))


def learnt(folder, kind, accumulate=1, batch=padded):
    torch.manual_seed(0)
    model = objective.new_model(ARCHITECTURES[kind]).double().train()
    task = TrainingPlan(
        steps=4,
        batch=batch,
        loss=lambda batch, step: objective.loss(model, batch),
        rate=lambda step: 1.0,
        seed=0,
        accumulate=accumulate,
        by_row=True,
        checkpoint_every=2,
    )
    run = new_run(folder)
    train(run, model, optim.make(model, "lamb", 0.02, 0.01), task)
    return weights(model), [value for key in sorted(run.curves) for _, value in run.curves[key]]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_micro_batches_with_dropout_learn_what_one_batch_does(tmp_path, kind):
    """In float64, but for the losses. A job also resumes with other micro-batches."""
    whole = learnt(tmp_path / "whole", kind)
    with pytest.raises(Stop):
        learnt(tmp_path / "broken", kind, batch=stop_at(padded, 3))
    for found in (learnt(tmp_path / "parts", kind, 4), learnt(tmp_path / "broken", kind, 3)):
        assert (whole[0] - found[0]).norm() / whole[0].norm() < 1e-6
        assert found[1] == pytest.approx(whole[1], rel=1e-5)
