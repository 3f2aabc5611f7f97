"""Token ids of many sentences at once: those that `tokenizers` gives, several times as fast on text that repeats its words.

BERT's tokenizer looks at the text between two spaces and nowhere else: it cleans, decomposes and lower-cases character
by character, and no word crosses a space. So what was encoded once is looked up, and only what is new is encoded.
"""

from collections import defaultdict
from itertools import chain, count, islice

import numpy as np
from tokenizers import Tokenizer

# Words kept, some 50 MB; 8 MB of English have half as many. The rare ones are forgotten when there are more.
MAX_WORDS = 2**18


class SentenceEncoder:
    """Sentences to WordPiece ids with a tokenizer of `mobilebert.data.tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._keep([], np.zeros(0, np.uint32), np.zeros(0, np.int64))

    def _keep(self, words: list[str], ids: np.ndarray, lengths: np.ndarray) -> None:
        numbers = count()
        self.known = defaultdict(numbers.__next__, zip(words, numbers))
        self.ids, self.lengths, self.starts = ids, lengths, np.cumsum(lengths) - lengths
        self.uses = np.zeros(len(words), np.int64)

    def __call__(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all sentences, (tokens,) uint32, and the tokens of each, (sentences,) int64; no special tokens."""
        words = [sentence.split(" ") for sentence in sentences]
        counts = np.fromiter(map(len, words), np.int64, len(words))
        numbers = np.fromiter(map(self.known.__getitem__, chain.from_iterable(words)), np.int64, counts.sum())
        self._encode(list(islice(self.known, len(self.lengths), None)))
        lengths = self.lengths[numbers]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # A token stands as far behind its word's first id as behind its word's first token.
        ids = self.ids[np.arange(ends[-1]) + np.repeat(self.starts[numbers] - ends[:-1], lengths)]
        bounds = ends[np.concatenate([[0], np.cumsum(counts)])]
        self.uses += np.bincount(numbers, minlength=len(self.uses))
        if len(self.known) > MAX_WORDS:
            self._forget()
        return ids, np.diff(bounds)

    def _encode(self, words: list[str]) -> None:
        new = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(words, add_special_tokens=False)]
        lengths = np.fromiter(map(len, new), np.int64, len(new))
        ids = np.fromiter(chain.from_iterable(new), np.uint32, lengths.sum())
        self.lengths = np.concatenate([self.lengths, lengths])
        self.ids = np.concatenate([self.ids, ids])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.uses = np.concatenate([self.uses, np.zeros(len(words), np.int64)])

    def _forget(self) -> None:
        """Keep the half of MAX_WORDS that was used most, the older of equals."""
        kept = np.zeros(len(self.uses), bool)
        kept[np.argsort(-self.uses, kind="stable")[: MAX_WORDS // 2]] = True
        words = [word for word, keep in zip(self.known, kept) if keep]
        self._keep(words, self.ids[np.repeat(kept, self.lengths)], self.lengths[kept])
