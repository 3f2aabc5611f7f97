"""Score held-out text with a trigram model: what a reader of two words would lose."""

import math

import numpy as np

MOST_TOKENS = 20_000_000  # of the training text: 1 GB of memory and a minute
DISCOUNT = 0.75


def trigram_entropy(train: np.ndarray, heldout: np.ndarray, vocab_size: int) -> float:
    """Return nats per held-out token of a trigram model, on running text from left to right.

    The model interpolates trigrams, bigrams and add-one smoothed words by absolute discounting. It
    sees the two tokens before, a masked language model both sides. Sentence ends are not marked.

    train, heldout: (tokens,) ids; with fewer than three the result is NaN.
    vocab_size: at most 2^21, so that a trigram is one 64-bit integer.
    """
    train = train[:MOST_TOKENS]
    if min(len(train), len(heldout)) < 3:
        return math.nan
    counts = np.bincount(train, minlength=vocab_size)
    likely = ((counts + 1) / (len(train) + vocab_size))[heldout[2:]]
    for order in (2, 3):
        read, scored = (_grams(tokens, order, vocab_size) for tokens in (train, heldout[3 - order :]))
        likely = _interpolated(read, scored, vocab_size, likely)
    return float(-np.log(likely).mean())


def bytes_per_token(heldout: np.ndarray, vocabulary: list[str]) -> float:
    """Return the bytes of text that a held-out token stands for, on average.

    The text is as the tokenizer spells it: in UTF-8, lower case, one space before each word. An
    unknown word counts as the name of its token. vocabulary: the tokens by id.
    """
    lengths = [len(token.removeprefix("##").encode()) + (not token.startswith("##")) for token in vocabulary]
    return float(np.bincount(heldout, minlength=len(lengths)) @ np.array(lengths) / len(heldout))


def _grams(tokens: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """Return every run of `order` tokens as one integer, the last token as its lowest digit."""
    found = tokens[: len(tokens) - order + 1].astype(np.int64)
    for place in range(1, order):
        found *= vocab_size
        found += tokens[place : len(tokens) - order + 1 + place]
    return found


def _interpolated(train: np.ndarray, heldout: np.ndarray, vocab_size: int, lower: np.ndarray) -> np.ndarray:
    """Return the probability of each held-out run's last token after the tokens before it.

    lower: that probability by the next shorter model, which gets the discounted share.
    """
    runs, counts = np.unique(train, return_counts=True)
    contexts, starts = np.unique(runs // vocab_size, return_index=True)
    totals, kinds = np.add.reduceat(counts, starts), np.diff(np.append(starts, len(runs)))
    run, is_known = _places(runs, heldout)
    context, is_seen = _places(contexts, heldout // vocab_size)
    count = np.where(is_known, counts[run], 0)
    mixed = (np.maximum(count - DISCOUNT, 0) + DISCOUNT * kinds[context] * lower) / totals[context]
    return np.where(is_seen, mixed, lower)


def _places(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each wanted value is in an ordered array, and whether it is there at all."""
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return places, ordered[places] == wanted
