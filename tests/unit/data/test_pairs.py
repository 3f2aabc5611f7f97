"""Segment pairs of a corpus whose token ids tell their place, so that rows can be read back."""

import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from mobilebert.data.segment_pairs import Pairs, predictions
from mobilebert.pretraining.objective import batches
from mobilebert.util.errors import UserError

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
FIRST = len(SPECIAL)


def write_corpus(folder, document_lengths, split="train"):
    """Write a corpus whose token i has the id FIRST + i; return a tokenizer that fits."""
    sentences = [length for document in document_lengths for length in document]
    tokens = np.arange(FIRST, FIRST + sum(sentences), dtype=np.uint16)
    np.save(folder / f"{split}.tokens.npy", tokens)
    np.save(folder / f"{split}.sentences.npy", np.cumsum([0, *sentences]))
    np.save(folder / f"{split}.documents.npy", np.cumsum([0, *map(len, document_lengths)]))
    vocab = {**SPECIAL, **{f"w{token}": int(token) for token in tokens}}
    return Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    documents = [list(rng.integers(1, 20, rng.integers(1, 30))) for _ in range(60)]
    return folder, write_corpus(folder, documents), np.cumsum([sum(document) for document in documents])


def restore(batch):
    """Return input_ids with the masked tokens put back."""
    ids = batch["input_ids"].copy()
    ids.reshape(-1)[batch["masked_positions"]] = batch["masked_labels"]
    return ids


@given(
    documents=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=2, max_size=6),
    length=st.integers(5, 48),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**6),
    max_predictions=st.none() | st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_every_row_is_a_pair_of_contiguous_segments(tmp_path_factory, documents, length, seed, step, max_predictions):
    folder = tmp_path_factory.mktemp("rows")
    tokenizer = write_corpus(folder, documents)
    ends = np.cumsum([sum(document) for document in documents])
    pairs = Pairs(folder, "train", length=length, tokenizer=tokenizer, seed=seed, max_predictions=max_predictions)
    batch = pairs.batch(step, 16)
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.dtype(np.int64))
    positions = np.zeros(16 * length, bool)
    positions[batch["masked_positions"]] = True
    assert np.all(np.diff(batch["masked_positions"]) > 0)
    assert positions.reshape(16, length).sum(1).max() <= predictions(length, most=max_predictions)
    rows = zip(restore(batch), batch["token_type_ids"], batch["attention_mask"], positions.reshape(16, length))
    for (ids, types, mask, masked), label in zip(rows, batch["next_sentence_label"]):
        real = int(mask.sum())
        assert mask[:real].all()
        assert (ids[real:] == SPECIAL["[PAD]"]).all()
        assert ids[0] == SPECIAL["[CLS]"]
        first_sep, last_sep = np.flatnonzero(ids[:real] == SPECIAL["[SEP]"])
        assert last_sep == real - 1
        assert np.array_equal(types, (np.arange(length) > first_sep) & (np.arange(length) <= last_sep))
        first, second = ids[1:first_sep], ids[first_sep + 1 : last_sep]
        documents_of = []
        for segment in (first, second):
            assert len(segment) >= 1
            assert np.all(np.diff(segment) == 1), "a segment is a contiguous run of the corpus"
            documents_of.append(set(np.searchsorted(ends, segment - FIRST, side="right")))
            assert len(documents_of[-1]) == 1, "a segment lies in one document"
        assert (documents_of[0] != documents_of[1]) == bool(label)
        if not label:
            assert second[0] > first[-1]
        assert not masked[ids < FIRST].any(), "no special token is masked"
        bound = max(1, round(real * 0.15))
        assert 1 <= masked.sum() <= min(bound, max_predictions or bound)


def test_the_second_segment_follows_the_first_where_nothing_was_cut(corpus):
    folder, tokenizer, _ = corpus
    batch = Pairs(folder, "train", length=256, tokenizer=tokenizer, seed=3).batch(0, 500)
    ids, real = restore(batch), batch["attention_mask"].sum(1)
    whole = (real < 256) & (batch["next_sentence_label"] == 0)
    assert whole.sum() > 20
    for row in ids[whole]:
        first_sep = np.flatnonzero(row == SPECIAL["[SEP]"])[0]
        assert row[first_sep + 1] == row[first_sep - 1] + 1


@given(first=st.integers(1, 60), second=st.integers(1, 60), length=st.integers(6, 64))
@settings(max_examples=60, deadline=None)
def test_truncation_cuts_the_longer_segment(tmp_path_factory, first, second, length):
    """The oracle removes token after token, as truncate_seq_pair of the released BERT code."""
    folder = tmp_path_factory.mktemp("cut")
    # Every document is these two sentences: unless the start is moved, a row that starts with the
    # first sentence is the pair.
    tokenizer = write_corpus(folder, [[first, second]] * 3)
    batch = Pairs(folder, "train", length=length, tokenizer=tokenizer, seed=0, short_share=0).batch(0, 64)
    expected = [first, second]
    while sum(expected) > length - 3:
        expected[0 if expected[0] > expected[1] else 1] -= 1
    for row, types, label in zip(restore(batch), batch["token_type_ids"], batch["next_sentence_label"]):
        if not label:
            sizes = [int(np.argmax(row == SPECIAL["[SEP]"])) - 1, int(types.sum()) - 1]
            assert sizes == expected


def test_a_row_depends_on_seed_step_and_row_alone(corpus):
    folder, tokenizer, _ = corpus
    pairs = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=7)
    big = pairs.batch(5, 40)
    pairs.batch(6, 3)
    small = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=7).batch(5, 11)
    for name in ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label"):
        assert np.array_equal(big[name][:11], small[name])
    kept = big["masked_positions"] < 11 * 64
    assert np.array_equal(big["masked_positions"][kept], small["masked_positions"])
    assert np.array_equal(big["masked_labels"][kept], small["masked_labels"])
    for other in (pairs.batch(6, 11), Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=8).batch(5, 11)):
        assert not np.array_equal(other["input_ids"], small["input_ids"])


@given(size=st.integers(1, 9), parts=st.integers(1, 9), length=st.integers(5, 9), step=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_part_has_the_rows_of_the_whole_batch(corpus, size, parts, length, step):
    """A part may begin after an odd number of draws: one generated number serves two draws."""
    folder, tokenizer, _ = corpus
    pairs = Pairs(folder, "train", length=length, tokenizer=tokenizer, seed=3)
    whole, found = pairs.batch(step, size), [pairs.batch(step, size, part, parts) for part in range(parts)]
    counts = [size, len(whole["masked_positions"]), whole["attention_mask"].sum()]
    assert all(part["whole"].tolist() == counts for part in (whole, *found))
    rows = [len(part["input_ids"]) for part in found]
    assert max(rows) - min(rows) <= 1
    for name in ("input_ids", "token_type_ids", "attention_mask", "masked_labels", "next_sentence_label"):
        assert np.array_equal(np.concatenate([part[name] for part in found]), whole[name])
    starts = np.cumsum([0, *rows]) * length
    positions = [part["masked_positions"] + start for part, start in zip(found, starts)]
    assert np.array_equal(np.concatenate(positions), whole["masked_positions"])


def test_a_process_has_a_mask_where_any_row_of_the_batch_is_padded(corpus):
    """One process has it too: attention with a mask is rounded otherwise than without."""
    folder, tokenizer, _ = corpus
    (folder / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "corpus").mkdir(exist_ok=True)
    for name in ("tokens", "sentences", "documents"):
        shutil.copy(folder / f"train.{name}.npy", folder / "corpus")
    whole, *parts = (batches(folder / "corpus", "train", 32, 3, 0, None, *place) for place in ((0, 1), (0, 3), (1, 3), (2, 3)))
    masks, full = set(), False
    for step in range(40):
        expected, found = whole(step), [part(step) for part in parts]
        assert "whole" not in expected
        assert {"attention_mask" in part for part in found} == {"attention_mask" in expected}
        masks.add("attention_mask" in expected)
        full |= any("attention_mask" in part and part["attention_mask"].all() for part in found)
    assert masks == {True, False}
    assert full


def test_shares_of_masking_and_of_pairs(corpus):
    folder, tokenizer, _ = corpus
    pairs = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=1)
    batches = [pairs.batch(step, 500) for step in range(8)]
    shown = np.concatenate([batch["input_ids"].reshape(-1)[batch["masked_positions"]] for batch in batches])
    labels = np.concatenate([batch["masked_labels"] for batch in batches])
    real = np.concatenate([batch["attention_mask"].sum(1) for batch in batches])
    assert len(labels) == sum(min(max(1, round(0.15 * tokens)), tokens - 3) for tokens in real.tolist())
    # 30,000 masked tokens: the standard error of a share of 0.1 is 0.002.
    assert np.mean(shown == SPECIAL["[MASK]"]) == pytest.approx(0.8, abs=0.01)
    assert np.mean(shown == labels) == pytest.approx(0.1, abs=0.01)
    swapped = shown[(shown != labels) & (shown != SPECIAL["[MASK]"])]
    assert swapped.mean() == pytest.approx(tokenizer.get_vocab_size() / 2, rel=0.03), "uniform over the vocabulary"
    # Rows of a single sentence always get a random second segment, so random ones are slightly more
    # than half.
    assert 0.47 < np.mean([batch["next_sentence_label"] for batch in batches]) < 0.62
    # A tenth of the rows is short; so are rows of documents that end early.
    full = np.mean([batch["attention_mask"].sum(1) >= 55 for batch in batches])
    assert 0.75 < full < 0.95


def within(count, total, share, sigmas=4):
    """Return whether a count of draws is within `sigmas` standard errors of its share."""
    return abs(count / total - share) < sigmas * (share * (1 - share) / total) ** 0.5


def test_half_of_the_second_segments_are_random_and_a_tenth_of_the_rows_short(tmp_path):
    """Sentences of one token in long documents: only the draws decide."""
    tokenizer = write_corpus(tmp_path, [[1] * 400] * 40)
    batch = Pairs(tmp_path, "train", length=64, tokenizer=tokenizer, seed=5).batch(0, 10_000)
    assert within(batch["next_sentence_label"].sum(), 10_000, 0.5)
    # A short row draws 2 to 61 tokens, and 61 is no shorter than the others.
    full = (batch["attention_mask"].sum(1) == 64).sum()
    assert within(full, 10_000, 0.9 + 0.1 / 60)


def test_masking_shares_within_their_standard_errors(corpus):
    folder, tokenizer, _ = corpus
    batch = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=9).batch(0, 4000)
    shown, labels = batch["input_ids"].reshape(-1)[batch["masked_positions"]], batch["masked_labels"]
    random = (shown != labels) & (shown != SPECIAL["[MASK]"])
    assert within((shown == SPECIAL["[MASK]"]).sum(), len(shown), 0.8)
    assert within(random.sum(), len(shown), 0.1)  # but for the one in thousands that draws its own token
    assert within((shown == labels).sum(), len(shown), 0.1)


def test_a_second_epoch_masks_other_tokens(corpus):
    """A token that was masked once is masked no more often than any other in the next epoch."""
    folder, tokenizer, ends = corpus
    pairs = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=4)
    steps = -(-len(pairs) // 16)
    met, masked = np.zeros((2, ends[-1]), bool), np.zeros((2, ends[-1]), bool)
    for epoch in range(2):
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch = pairs.batch(step, 16)
            ids = restore(batch)
            met[epoch, ids[ids >= FIRST] - FIRST] = True
            masked[epoch, batch["masked_labels"] - FIRST] = True
    again = masked[0] & met[1]
    assert again.sum() > 300
    expected = masked[1][met[1]].mean()
    assert within(masked[1][again].sum(), again.sum(), expected)
    assert 0.1 < expected < 0.4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_draws_the_same_batches(corpus, workers):
    folder, tokenizer, _ = corpus
    alone = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=6)
    readers = [Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=6) for _ in range(workers)]
    for step in reversed(range(7)):
        batch = readers[step % workers].batch(step, 8)
        assert all(np.array_equal(array, batch[name]) for name, array in alone.batch(step, 8).items())


def test_a_corpus_is_read_from_disk(tmp_path):
    """There are 24 MB of offsets and 8 MB of tokens; a batch copies neither into memory."""
    documents = 1_000_000
    np.save(tmp_path / "train.tokens.npy", np.full(4 * documents, 7, np.uint16))
    np.save(tmp_path / "train.sentences.npy", np.arange(0, 4 * documents + 1, 2))
    np.save(tmp_path / "train.documents.npy", np.arange(0, 2 * documents + 1, 2))
    tokenizer = Tokenizer(models.WordPiece({**SPECIAL, "a": 5, "b": 6, "c": 7}, unk_token="[UNK]"))
    tracemalloc.start()
    try:
        Pairs(tmp_path, "train", length=32, tokenizer=tokenizer, seed=0).batch(0, 16)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_length_does_not_tell_the_label(corpus):
    folder, tokenizer, _ = corpus
    batch = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=1, short_share=0).batch(0, 4000)
    lengths, label = batch["attention_mask"].sum(1), batch["next_sentence_label"]
    assert abs(np.mean(lengths[label == 0]) - np.mean(lengths[label == 1])) < 2


def test_every_token_is_reached_evenly(corpus):
    folder, tokenizer, ends = corpus
    pairs = Pairs(folder, "train", length=64, tokenizer=tokenizer, seed=2)
    ids = np.concatenate([restore(pairs.batch(step, 1000)).reshape(-1) for step in range(4)])
    counts = np.bincount(ids[ids >= FIRST] - FIRST, minlength=ends[-1])
    assert (counts > 0).mean() > 0.99
    assert len(pairs) == ends[-1] // 61


def test_user_errors(corpus, tmp_path):
    folder, tokenizer, _ = corpus
    with pytest.raises(UserError, match=r"heldout\.tokens\.npy: missing"):
        Pairs(folder, "heldout", length=64, tokenizer=tokenizer, seed=0)
    with pytest.raises(UserError, match="length is 4"):
        Pairs(folder, "train", length=4, tokenizer=tokenizer, seed=0)
    alone = write_corpus(tmp_path, [[3, 4]])
    with pytest.raises(UserError, match="needs at least 2"):
        Pairs(tmp_path, "train", length=64, tokenizer=alone, seed=0)
