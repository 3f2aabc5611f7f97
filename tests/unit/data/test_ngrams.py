"""The trigram model against one of dictionaries; bytes against the text itself."""

import math
from collections import Counter

import numpy as np
import pytest

from mobilebert.data import ngrams
from mobilebert.data.ngrams import bytes_per_token, trigram_entropy

SIZE = 7


def text(seed, length):
    """Return ids in which a token often follows the one before."""
    draw = np.random.default_rng(seed)
    ids = [0, 1]
    while len(ids) < length:
        ids.append((ids[-1] + ids[-2]) % SIZE if draw.random() < 0.7 else int(draw.integers(SIZE)))
    return ids


def probability(train, context, word):
    """Return the probability of a word by dictionaries: absolute discounting of 0.75."""
    if not context:
        return (train.count(word) + 1) / (len(train) + SIZE)
    order = len(context) + 1
    runs = Counter(tuple(train[at : at + order]) for at in range(len(train) - order + 1))
    after = {run[-1]: count for run, count in runs.items() if run[:-1] == tuple(context)}
    lower = probability(train, context[1:], word)
    if not after:
        return lower
    return (max(after.get(word, 0) - 0.75, 0) + 0.75 * len(after) * lower) / sum(after.values())


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_entropy_is_that_of_a_model_of_dictionaries(dtype):
    train, heldout = text(1, 60), text(2, 40)
    expected = [-math.log(probability(train, heldout[at - 2 : at], heldout[at])) for at in range(2, len(heldout))]
    found = trigram_entropy(np.array(train, dtype), np.array(heldout, dtype), SIZE)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_the_probabilities_of_all_words_add_up_to_one():
    train = np.array(text(3, 50))
    for context in ((0, 1), (6, 6), (2, 5)):
        entropies = [trigram_entropy(train, np.array([*context, word]), SIZE) for word in range(SIZE)]
        assert sum(math.exp(-value) for value in entropies) == pytest.approx(1)


def test_a_large_vocabulary_does_not_overflow():
    words = [30_521, 30_520, 30_519]
    found = trigram_entropy(np.array(words * 400, np.uint16), np.array(words * 40, np.uint16), 30_522)
    assert found < 0.01


def test_only_the_first_training_tokens_are_counted(monkeypatch):
    train, heldout = np.array(text(4, 60)), np.array(text(5, 40))
    monkeypatch.setattr(ngrams, "MOST_TOKENS", 30)
    assert trigram_entropy(train, heldout, SIZE) == trigram_entropy(train[:30], heldout, SIZE)


def test_a_text_without_a_trigram_has_no_entropy():
    assert math.isnan(trigram_entropy(np.array([1, 2]), np.array([1, 2, 3]), SIZE))
    assert math.isnan(trigram_entropy(np.array([1, 2, 3]), np.array([1, 2]), SIZE))


def test_bytes_per_token_are_those_of_the_text():
    vocabulary = ["[UNK]", "the", "caf", "##\N{LATIN SMALL LETTER E WITH ACUTE}", "."]
    spelt = " the caf\N{LATIN SMALL LETTER E WITH ACUTE} . the [UNK]"
    assert bytes_per_token(np.array([1, 2, 3, 4, 1, 0]), vocabulary) == len(spelt.encode()) / 6
