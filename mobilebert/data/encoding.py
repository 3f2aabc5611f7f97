"""Encode many sentences at once: the same token ids as `tokenizers`, several times as fast.

BERT's tokenizer handles the text between two spaces on its own: it cleans, decomposes and
lower-cases character by character, and no word crosses a space. So only new words are encoded;
others are looked up. Words of printable ASCII are split further, into runs of letters and digits
and single punctuation marks, as the tokenizer does, and each of these is encoded once.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, count, islice

import numpy as np
from tokenizers import Tokenizer

# Words kept, some 50 MB; 8 MB of English have half as many. If there are more, the rare ones are
# dropped.
MAX_WORDS = 2**18
# Printable ASCII without the bracket that starts a special token. In such text a word is a run of
# letters and digits, or one punctuation mark.
_PLAIN = re.compile(r"[!-Z\\-~]+")
_PART = re.compile(r"[a-z0-9]+|[^a-z0-9]")


class SentenceEncoder:
    """A fast encoder of sentences, for a tokenizer of `mobilebert.data.tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.continuations = {number for token, number in tokenizer.get_vocab().items() if token.startswith("##")}
        self._keep([], np.zeros(0, np.uint32), np.zeros(0, np.int64))

    def _keep(self, words: list[str], ids: np.ndarray, lengths: np.ndarray) -> None:
        numbers = count()
        self.known = defaultdict(numbers.__next__, zip(words, numbers))
        self.ids, self.lengths, self.starts = ids, lengths, np.cumsum(lengths) - lengths
        self.uses = np.zeros(len(words), np.int64)
        self.parts: dict[str, tuple[int, ...]] = {}

    def __call__(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all sentences, (tokens,) uint32, and their lengths, (sentences,) int64.

        There are no special tokens.
        """
        words = [sentence.split(" ") for sentence in sentences]
        counts = np.fromiter(map(len, words), np.int64, len(words))
        numbers = np.fromiter(map(self.known.__getitem__, chain.from_iterable(words)), np.int64, counts.sum())
        self._encode(list(islice(self.known, len(self.lengths), None)))
        lengths = self.lengths[numbers]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # The i-th token of a word has the i-th of the word's ids.
        ids = self.ids[np.arange(ends[-1]) + np.repeat(self.starts[numbers] - ends[:-1], lengths)]
        bounds = ends[np.concatenate([[0], np.cumsum(counts)])]
        self.uses += np.bincount(numbers, minlength=len(self.uses))
        if len(self.known) > MAX_WORDS:
            self._forget()
        return ids, np.diff(bounds)

    def _encode(self, words: list[str]) -> None:
        plain = {word: _PART.findall(word.lower()) for word in words if _PLAIN.fullmatch(word)}
        self._encode_parts({part for parts in plain.values() for part in parts} - self.parts.keys())
        found: dict[str, Sequence[int]] = {}
        for word, parts in plain.items():
            found[word] = tuple(chain.from_iterable(map(self.parts.__getitem__, parts)))
        rest = [word for word in words if word not in plain]
        found.update(zip(rest, (item.ids for item in self.tokenizer.encode_batch_fast(rest, add_special_tokens=False))))
        new = [found[word] for word in words]
        lengths = np.fromiter(map(len, new), np.int64, len(new))
        ids = np.fromiter(chain.from_iterable(new), np.uint32, lengths.sum())
        self.lengths = np.concatenate([self.lengths, lengths])
        self.ids = np.concatenate([self.ids, ids])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.uses = np.concatenate([self.uses, np.zeros(len(words), np.int64)])

    def _encode_parts(self, parts: set[str]) -> None:
        """Encode the parts, 1000 a line: a call of the tokenizer costs more than a part.

        A new part starts at each token without "##"; no part itself begins with "##".
        """
        ordered = list(parts)
        lines = [" ".join(ordered[start : start + 1000]) for start in range(0, len(ordered), 1000)]
        encodings = self.tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        ids = [token for encoding in encodings for token in encoding.ids]
        starts = [place for place, token in enumerate(ids) if token not in self.continuations]
        for part, start, end in zip(ordered, starts, [*starts, len(ids)][1:], strict=True):
            self.parts[part] = tuple(ids[start:end])

    def _forget(self) -> None:
        """Keep the MAX_WORDS / 2 words that were used most; if two are equal, the older one."""
        kept = np.zeros(len(self.uses), bool)
        kept[np.argsort(-self.uses, kind="stable")[: MAX_WORDS // 2]] = True
        words = [word for word, keep in zip(self.known, kept) if keep]
        self._keep(words, self.ids[np.repeat(kept, self.lengths)], self.lengths[kept])
