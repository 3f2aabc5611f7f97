"""Batches built ahead, split and hashed keep their numbers and their order."""

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilebert.training.batches import AHEAD, ahead, digest, split
from mobilebert.util.errors import UserError


def batch(rows, length=7, seed=0, padded=True):
    """Return rows padded at their ends, each with at least one masked position."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(2, length + 1, (rows,), generator=generator) if padded else torch.full((rows,), length)
    mask = (torch.arange(length) < real[:, None]).long()
    chosen = (torch.rand(rows, length, generator=generator) < 0.3) & (mask == 1)
    chosen[:, 0] = True
    positions = chosen.flatten().nonzero().flatten()
    return {
        "input_ids": torch.randint(0, 99, (rows, length), generator=generator),
        "attention_mask": mask,
        "masked_positions": positions,
        "masked_labels": torch.randint(0, 99, positions.shape, generator=generator),
        "next_sentence_label": torch.randint(0, 2, (rows,), generator=generator),
    }


def own_rows(whole, process, processes):
    """Return the batch of `Pairs.batch` in one of several processes."""
    rows, length = whole["input_ids"].shape
    start, end = (rows * index // processes for index in (process, process + 1))
    chosen = (whole["masked_positions"] >= start * length) & (whole["masked_positions"] < end * length)
    own = {key: value[start:end] for key, value in whole.items() if not key.startswith("masked_")}
    own |= {
        "masked_positions": whole["masked_positions"][chosen] - start * length,
        "masked_labels": whole["masked_labels"][chosen],
    }
    return own | {"whole": torch.tensor([rows, len(whole["masked_positions"]), whole["attention_mask"].sum()])}


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 14), parts=st.integers(1, 12), processes=st.integers(1, 4), seed=st.integers(0, 99))
def test_micro_batches_are_the_batch_and_their_weighted_means_are_its_means(rows, parts, processes, seed):
    whole = batch(rows, seed=seed)
    owns = [whole] if processes == 1 else [own_rows(whole, process, processes) for process in range(processes)]
    if parts * processes > rows:
        for own in owns:  # every process refuses, or one would wait for the others
            with pytest.raises(UserError, match=f"batch_size: {rows} rows are fewer than the {parts * processes} micro-batches"):
                split(own, parts, processes)
        return
    found = [part for own in owns for part in split(own, parts, processes)]
    assert len(found) == parts * processes
    assert not any("whole" in part for part in found)
    for key in ("input_ids", "attention_mask", "next_sentence_label", "masked_labels"):
        assert torch.equal(torch.cat([part[key] for part in found]), whole[key])
    masked = whole["input_ids"].flatten()[whole["masked_positions"]]
    assert torch.equal(torch.cat([part["input_ids"].flatten()[part["masked_positions"]] for part in found]), masked)

    def mean_of(means, weight=None):
        shares = [len(part["input_ids"]) / rows for part in found]
        return sum(float(share * mean * part.get(weight, 1.0)) for share, mean, part in zip(shares, means, found))

    ids = [part["input_ids"].double() for part in found]
    labels = [part["masked_labels"].double().mean() for part in found]
    real = [(x * part["attention_mask"]).sum() / part["attention_mask"].sum() for x, part in zip(ids, found)]
    everything = whole["input_ids"].double()
    mask = whole["attention_mask"]
    assert mean_of([x.mean() for x in ids]) == pytest.approx(everything.mean().item(), rel=1e-6)
    assert mean_of(labels, "masked_weight") == pytest.approx(whole["masked_labels"].double().mean().item(), rel=1e-6)
    assert mean_of(real, "token_weight") == pytest.approx(((everything * mask).sum() / mask.sum()).item(), rel=1e-6)


def test_the_hash_depends_on_every_array():
    one = batch(4)
    assert digest(one) == digest(batch(4)) == digest(dict(reversed(one.items())))
    assert len(digest(one)) == 12
    for key in one:
        other = batch(4)
        other[key] = other[key].clone()
        other[key].view(-1)[0] += 1
        assert digest(other) != digest(one), key


def test_batches_come_in_order_and_are_built_ahead():
    made, release = [], threading.Event()

    def make(step):
        made.append((step, threading.current_thread()))
        if len(made) > AHEAD:
            release.set()
        return step * 10

    batches = ahead(make, range(5, 12))
    assert next(batches) == 50
    assert release.wait(10)  # the next ones are built before anyone asks
    assert [step for step, _ in made[: AHEAD + 1]] == [5, 6, 7]
    assert list(batches) == [60, 70, 80, 90, 100, 110]
    assert threading.main_thread() not in {thread for _, thread in made}


def test_the_number_of_batches_built_ahead_is_bounded():
    made = []
    batches = ahead(lambda step: made.append(step) or step, iter(int, 1))  # endless
    for _ in range(4):
        next(batches)
    time.sleep(0.05)
    assert len(made) <= 4 + AHEAD
    batches.close()


def test_an_error_is_raised_at_its_step():
    def make(step):
        if step == 2:
            raise UserError("no such batch")
        return step

    before = set(threading.enumerate())  # a loop that another test left may still hold its thread
    batches = ahead(make, range(9))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match="no such batch"):
        next(batches)
    assert not set(threading.enumerate()) - before
