"""Rows of a task: sampled, encoded, cut to length, and in batches."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from word_tokens import VOCAB, WORDS, word_tokenizer

from mobilebert.data.examples import Examples, encode, sample

EXAMPLES = settings(max_examples=40, deadline=None)
PAD, UNK, CLS, SEP, MASK = range(5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return word_tokenizer(tmp_path_factory.mktemp("words"))


def ids(*words):
    return [VOCAB.index(word) for word in words]


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=120))
    return Examples(
        [np.arange(1, size + 1) + 100 * row for row, size in enumerate(lengths)],
        [np.arange(size) % 2 for size in lengths],
        pad=9,
        targets={"labels": np.arange(len(lengths)) * 10},
    )


@EXAMPLES
@given(rows(), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_has_every_row_once(examples, size, seed, epoch):
    batches = examples.epoch(size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(examples)))
    assert len(batches) == -(-len(examples) // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)  # one batch may be short


@EXAMPLES
@given(rows(), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_function_of_seed_and_epoch(examples, size, seed, epoch):
    first = examples.epoch(size, seed, epoch)
    examples.epoch(size, seed + 1, epoch + 1)
    np.random.seed(0)
    again = examples.epoch(size, seed, epoch)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]


def test_epochs_and_seeds_differ():
    examples = Examples([np.ones(5)] * 200, [np.zeros(5)] * 200, 0)
    orders = {tuple(np.concatenate(examples.epoch(8, seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_epochs_batches_have_rows_of_like_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    examples = Examples([np.ones(size) for size in lengths], [np.zeros(size) for size in lengths], 0)
    batches = examples.epoch(10, 0, 0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()  # at random it is 1.8 times
    widest = [lengths[batch].max() for batch in batches[:50]]  # one bucket: rising lengths would mean no shuffle
    assert widest != sorted(widest)


@EXAMPLES
@given(rows(), st.integers(1, 20))
def test_batches_for_prediction_have_every_row_once_the_longest_first(examples, size):
    batches = examples.by_length(size)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(examples)))
    assert (np.diff(examples.lengths[order]) <= 0).all()
    assert max(map(len, batches)) <= size
    counts = np.unique(examples.lengths, return_counts=True)[1]
    assert len(batches) == sum(-(-count // size) for count in counts)  # the fewest possible


@EXAMPLES
@given(rows(), st.integers(1, 20))
def test_a_batch_for_prediction_has_no_padding(examples, size):
    for chosen in examples.by_length(size):
        batch = examples.batch(chosen, multiple=1)
        assert batch["attention_mask"].all()
        assert batch["input_ids"].tolist() == [examples.ids[row].tolist() for row in chosen]


@EXAMPLES
@given(rows(), st.data())
def test_a_batch_is_its_rows_padded_to_a_multiple_of_eight(examples, data):
    chosen = np.array(data.draw(st.lists(st.integers(0, len(examples) - 1), min_size=1, max_size=8)))
    batch = examples.batch(chosen)
    longest, width = max(examples.lengths[chosen]), batch["input_ids"].shape[1]
    assert width % 8 == 0
    assert longest <= width < longest + 8
    assert (batch["labels"] == chosen * 10).all()
    for place, row in enumerate(chosen):
        size, rest = examples.lengths[row], width - examples.lengths[row]
        assert batch["input_ids"][place].tolist() == [*examples.ids[row], *[9] * rest]
        assert batch["attention_mask"][place].tolist() == [1] * size + [0] * rest
        assert batch["token_type_ids"][place].tolist() == [*examples.types[row], *[0] * rest]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


@EXAMPLES
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 9))
def test_a_sample_is_some_rows_in_their_order(size, wanted, seed):
    frame = pd.DataFrame({"idx": np.arange(size) * 3, "label": np.arange(size)}, index=np.arange(size)[::-1])
    found = sample(frame, wanted, seed)
    pd.testing.assert_frame_equal(found, sample(frame, wanted, seed))
    assert len(found) == min(size, wanted)
    assert found["idx"].is_monotonic_increasing
    assert found["idx"].is_unique
    assert (found["idx"] == found["label"] * 3).all()
    pd.testing.assert_frame_equal(sample(frame, None, seed), frame)


def test_a_sample_is_drawn_with_the_seed_from_the_whole_table():
    frame = pd.DataFrame({"idx": np.arange(100)})
    draws = [set(sample(frame, 20, seed)["idx"]) for seed in range(60)]
    assert len(set(map(frozenset, draws))) == 60
    assert set.union(*draws) == set(range(100))


def test_encoded_rows(tokenizer):
    frame = pd.DataFrame({"sentence": ["w1 w2", "w3 nonsense"], "label": [1, 0]})
    examples = encode(tokenizer, "sst2", frame, 16)
    assert [row.tolist() for row in examples.ids] == [[CLS, *ids("w1", "w2"), SEP], [CLS, *ids("w3"), UNK, SEP]]
    assert [row.tolist() for row in examples.types] == [[0] * 4] * 2
    assert examples.pad == PAD
    assert examples.targets["labels"].tolist() == [1, 0]
    assert examples.targets["labels"].dtype == np.int64


def test_encoded_pairs(tokenizer):
    frame = pd.DataFrame({"sentence1": ["w1 w2"], "sentence2": ["w3"], "label": [2.5]})
    examples = encode(tokenizer, "stsb", frame, 16)
    assert examples.ids[0].tolist() == [CLS, *ids("w1", "w2"), SEP, *ids("w3"), SEP]
    assert examples.types[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert examples.targets["labels"].dtype == np.float32


def berts_cut(a, b, room):
    """Cut as Devlin et al. 2019, `run_classifier.py`: one token at a time off the longer text, off
    the second if both are equal."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


@EXAMPLES
@given(st.integers(1, 30), st.integers(1, 30), st.integers(8, 40))
def test_a_pair_is_cut_to_length_from_the_ends_of_the_longer_text(tokenizer, first, second, length):
    """The cut is BERT's, but for one odd token if both texts exceed half of the room."""
    frame = pd.DataFrame({"sentence1": [" ".join(WORDS[:first])], "sentence2": [" ".join(WORDS[:second])], "label": [0]})
    examples = encode(tokenizer, "rte", frame, length)
    found, types = examples.ids[0].tolist(), examples.types[0].tolist()
    a, b = berts_cut(WORDS[:first], WORDS[:second], length - 3)
    kept = found.index(SEP) - 1
    assert found == [CLS, *ids(*WORDS[:kept]), SEP, *ids(*WORDS[: len(a) + len(b) - kept]), SEP]
    assert types == [0] * (kept + 2) + [1] * (len(a) + len(b) - kept + 1)
    odd = first + second > length - 3 and min(first, second) > (length - 3) // 2
    assert abs(kept - len(a)) <= odd


def test_a_sentence_is_cut_to_length_and_the_next_call_is_not(tokenizer):
    frame = pd.DataFrame({"sentence": [" ".join(WORDS[:20])], "label": [0]})
    assert encode(tokenizer, "cola", frame, 8).ids[0].tolist() == [CLS, *ids(*WORDS[:6]), SEP]
    assert len(encode(tokenizer, "cola", frame, 40).ids[0]) == 22
    encode(tokenizer, "cola", frame, 8)
    assert len(tokenizer.encode(" ".join(WORDS[:20])).ids) == 22
