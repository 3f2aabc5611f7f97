"""Draw BERT's pre-training examples with random access: a batch depends only on seed and step."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mobilebert.data.corpus import token_type
from mobilebert.data.reading import reading
from mobilebert.data.tokenizer import CLS, MASK, PAD, SEP
from mobilebert.util.errors import UserError

SPECIALS = 3  # [CLS] first [SEP] second [SEP]
NEXT_SHARE = 0.5
MASK_SHARE = 0.15
# 80 % of the masked tokens become [MASK], 10 % a random token, 10 % stay (Devlin et al. 2019,
# section 3.1).
MASK_TOKEN_SHARE, RANDOM_TOKEN_SHARE = 0.8, 0.1
# The columns of a row's draws for its segments.
_TOKEN, _SHORT, _SHORT_LENGTH, _SPLIT, _NEXT, _OTHER, _FRONT = range(7)


class Pairs:
    """Masked segment pairs from one split of `prepare_corpus`.

    They follow create_pretraining_data.py of the released BERT code, except for random access:
    - A row starts at the sentence of a token drawn uniformly from the corpus, not at the end of the
      previous row. If its document would end too early, the start moves back.
    - The random segment moves back too, so that its length does not reveal the label.
    - One uniform draw divides the tokens that truncation removes between front and back.

    folder, split: the output of `prepare_corpus`; `train` or `heldout`.
    length: tokens of a row, with special tokens and padding.
    tokenizer: the corpus's; gives the special ids and the range of random tokens.
    mask_share: masked share of a row's tokens, special tokens counted, as in the released code; at
        least one token is masked.
    short_share: share of rows with a target length drawn from 2 to length - 3.
    max_predictions: most masked tokens a row, None for no bound.

    Raises UserError if a file is missing or does not fit the tokenizer, if the split has fewer than
    two documents or if `length` is below 5.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        length: int,
        tokenizer: Tokenizer,
        seed: int,
        mask_share: float = MASK_SHARE,
        short_share: float = 0.1,
        max_predictions: int | None = None,
    ) -> None:
        if length < SPECIALS + 2:
            raise UserError(f"length is {length}: a pair needs at least {SPECIALS + 2} tokens")
        self.tokens, self.sentences, self.documents = (
            _load(Path(folder) / f"{split}.{name}.npy") for name in ("tokens", "sentences", "documents")
        )
        if len(self.documents) < 3:
            raise UserError(f"{folder}: split {split} has {len(self.documents) - 1} documents, needs at least 2")
        self.length, self.seed = length, seed
        self.mask_share, self.short_share, self.max_predictions = mask_share, short_share, max_predictions
        self.vocab_size = tokenizer.get_vocab_size()
        if self.tokens.dtype != token_type(self.vocab_size):
            raise UserError(
                f"{folder}: {split}.tokens.npy was not written with this tokenizer, whose vocabulary is {self.vocab_size}"
            )
        special: Any = [tokenizer.token_to_id(token) for token in (PAD, CLS, SEP, MASK)]
        self.pad, self.cls, self.sep, self.mask = special

    def __len__(self) -> int:
        """Return the number of pairs whose tokens add up to the corpus, at least 1."""
        return max(1, len(self.tokens) // (self.length - SPECIALS))

    def batch(self, step: int, size: int, part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Return rows 0 to size - 1 of a step, or number `part` of `parts` equal parts of them.

        If `parts` does not divide `size`, some parts have one row more. Row r is the same whatever
        `size` and `parts` are.

        input_ids, token_type_ids, attention_mask: (rows, length) int64.
        masked_positions: (masked,) int64, ascending indices into rows * length.
        masked_labels: (masked,) int64.
        next_sentence_label: (rows,) int64; 0 if the second segment follows the first, 1 if random.
        whole: (3,) int64, of all parts: rows, masked positions, tokens without padding.
        """
        # Draws fill an array row by row: the first rows of a large batch are those of a small one.
        # Segments are located for the rows of all parts, because `whole` needs them: a fifth of the
        # work at length 128, a fourteenth at 512.
        structure, masking = (np.random.default_rng([self.seed, step, stream]) for stream in range(2))
        segments, is_random = self._segments(structure.random((size, 7)))
        real = segments[1] + segments[3] + SPECIALS
        masked = predictions(real, self.mask_share, self.max_predictions)
        own = slice(size * part // parts, size * (part + 1) // parts)
        input_ids, token_type_ids, attention_mask = self._fill(*(array[own] for array in segments))
        _skip(masking, own.start * 3 * self.length)
        draws = masking.random((own.stop - own.start, 3, self.length), np.float32)
        positions, labels = self._mask(input_ids, attention_mask, masked[own], draws)
        return {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "attention_mask": attention_mask,
            "masked_positions": positions,
            "masked_labels": labels,
            "next_sentence_label": is_random[own].astype(np.int64),
            "whole": np.array([size, masked.sum(), real.sum()]),
        }

    def _segments(self, draws: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Return both segments, (start, tokens, start, tokens), and whether the second is random.

        All are arrays of (size,).
        """
        room = self.length - SPECIALS
        short = 2 + (draws[:, _SHORT_LENGTH] * (room - 1)).astype(np.int64)
        target = np.where(draws[:, _SHORT] < self.short_share, short, room)

        sentence = self._sentence_of((draws[:, _TOKEN] * len(self.tokens)).astype(np.int64))
        document = self._document_of(sentence)
        first = self._start(sentence, document, target)
        end = self._end(first, document, target)
        # The first segment has 1 to n - 1 of the n sentences. After a single sentence the second
        # segment is always random.
        count = end - first
        split = first + 1 + (draws[:, _SPLIT] * np.maximum(count - 1, 1)).astype(np.int64)
        split = np.minimum(split, np.maximum(end - 1, first + 1))
        is_random = (draws[:, _NEXT] >= NEXT_SHARE) | (count == 1)
        first_start, first_length = self.sentences[first], self.sentences[split] - self.sentences[first]

        # Draw a token of any other document: the range leaves out the tokens of this document.
        begin, stop = (self.sentences[self.documents[document + side]] for side in (0, 1))
        token = (draws[:, _OTHER] * (len(self.tokens) - (stop - begin))).astype(np.int64)
        sentence = self._sentence_of(token + np.where(token >= begin, stop - begin, 0))
        other = self._document_of(sentence)
        wanted = np.maximum(target - first_length, 1)
        random_start = self._start(sentence, other, wanted)
        random_end = self._end(random_start, other, wanted)
        second_start = self.sentences[np.where(is_random, random_start, split)]
        second_length = self.sentences[np.where(is_random, random_end, end)] - second_start

        # Cutting the longer segment until the pair fits leaves the shorter one whole, or both at
        # half of the room.
        half = room // 2
        first_kept = np.where(second_length <= half, room - second_length, np.minimum(first_length, room - half))
        second_kept = np.where(first_length <= room - half, room - first_length, np.minimum(second_length, half))
        fits = first_length + second_length <= room
        first_kept = np.where(fits, first_length, np.minimum(first_kept, first_length))
        second_kept = np.where(fits, second_length, np.minimum(second_kept, second_length))
        first_start = first_start + (draws[:, _FRONT] * (first_length - first_kept + 1)).astype(np.int64)
        second_start = second_start + (draws[:, _FRONT] * (second_length - second_kept + 1)).astype(np.int64)
        return (first_start, first_kept, second_start, second_kept), is_random

    def _sentence_of(self, token: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.sentences, token, side="right") - 1

    def _document_of(self, sentence: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.documents, sentence, side="right") - 1

    def _start(self, sentence: np.ndarray, document: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return the sentence at which a segment starts.

        It is `sentence`, moved back until `wanted` tokens follow in its document, but not beyond
        the document's first sentence.
        """
        stop = self.sentences[self.documents[document + 1]]
        latest = self._sentence_of(np.maximum(stop - wanted, 0))
        return np.maximum(np.minimum(sentence, latest), self.documents[document])

    def _end(self, start: np.ndarray, document: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Return the first sentence boundary at least `wanted` tokens after `start`.

        Returns the document's end if there is none.
        """
        end = np.searchsorted(self.sentences, self.sentences[start] + wanted, side="left")
        return np.minimum(end, self.documents[document + 1])

    def _fill(self, first_start, first_length, second_start, second_length) -> tuple[np.ndarray, ...]:
        """Return input_ids, token_type_ids, attention_mask of [CLS] first [SEP] second [SEP]."""
        column = np.arange(self.length)[None, :]
        first_end = (1 + first_length)[:, None]  # position of the first [SEP]
        second_end = first_end + 1 + second_length[:, None]
        in_first = (column > 0) & (column < first_end)
        in_second = (column > first_end) & (column < second_end)
        source = np.where(in_first, first_start[:, None] + column - 1, second_start[:, None] + column - first_end - 1)
        ids = np.full(source.shape, self.pad, np.int64)
        text = in_first | in_second
        ids[text] = self.tokens[source[text]]
        ids[:, 0] = self.cls
        ids[(column == first_end) | (column == second_end)] = self.sep
        attention_mask = (column <= second_end).astype(np.int64)
        return ids, ((column > first_end) & (column <= second_end)).astype(np.int64), attention_mask

    def _mask(self, ids: np.ndarray, attention_mask: np.ndarray, count: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, ...]:
        """Mask `count` tokens of each row of `ids` in place.

        Returns the flat positions and the original ids there.
        """
        text = (attention_mask == 1) & (ids != self.cls) & (ids != self.sep)
        order = np.argsort(np.where(text, draws[:, 0], 2.0), axis=1, kind="stable")
        chosen = np.zeros(ids.shape, bool)
        np.put_along_axis(chosen, order, np.arange(self.length)[None, :] < count[:, None], axis=1)
        labels = ids[chosen]
        action, word = draws[:, 1][chosen], draws[:, 2][chosen]
        random = (word.astype(np.float64) * self.vocab_size).astype(np.int64)
        replacement = np.where(action < MASK_TOKEN_SHARE + RANDOM_TOKEN_SHARE, random, labels)
        ids[chosen] = np.where(action < MASK_TOKEN_SHARE, self.mask, replacement)
        return np.flatnonzero(chosen), labels


def predictions(real: Any, mask_share: float = MASK_SHARE, most: int | None = None) -> Any:
    """Return how many tokens are masked in rows of `real` tokens, special tokens counted.

    real: an array or a number. The result never decreases with `real`.
    """
    count = np.minimum(np.maximum(1, np.rint(real * mask_share).astype(np.int64)), real - SPECIALS)
    return count if most is None else np.minimum(count, most)


def _skip(generator: np.random.Generator, draws: int) -> None:
    """Skip `draws` float32 draws; each 64-bit number of the generator gives two."""
    assert isinstance(generator.bit_generator, np.random.PCG64)
    generator.bit_generator.advance(draws // 2)
    generator.random(draws % 2, np.float32)


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: missing; prepare the corpus first")
    with reading(path, "not a whole token file; prepare the corpus again"):
        return np.load(path, mmap_mode="r", allow_pickle=False)
