"""Cut SQuAD questions into windows of tokens, and turn window scores into answers.

Windows follow the released run_squad.py (`convert_examples_to_features`, `write_predictions`):
[CLS] question [SEP] piece of the context [SEP]. Each next window begins `doc_stride` tokens later:
the step between windows, not their overlap. Answers are characters of the original context, found
by the tokens' offsets; the released code instead realigns WordPieces with white-space words.

`examples` below is any mapping with the columns `id`, `context`, `question` and `answers`: a pandas
DataFrame, a `datasets.Dataset`, a dict of lists.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from mobilebert.util.errors import UserError


class Columns(Protocol):
    """A table that gives its columns by name."""

    def __getitem__(self, key: str, /) -> Any: ...


_ROWS_AT_ONCE = 1024  # postprocess holds n_best^2 pair scores a window: 1024 * 400 * 4 bytes = 1.6 MB
_IMPOSSIBLE = np.float32(-np.inf)


@dataclass(frozen=True)
class Windows:
    """N windows over E examples, concatenated without padding; a window's [CLS] is its token 0.

    input_ids: int32 [tokens of all windows]; window i is `input_ids[bounds[i]:bounds[i + 1]]`.
    bounds: int64 [N + 1].
    example: int32 [N], ascending: the row of `examples`.
    context_start: int32 [N], first token of the context piece, which ends before the last [SEP].
    first_offset: int64 [N], the row of `offsets` of that token.
    offsets: int32 [tokens of all distinct contexts, 2], characters of the context, end exclusive.
    max_context: bool [tokens of all windows], whether this window shows the most context around the
        token of all windows. An answer may begin only there. False outside the context.
    start_positions, end_positions: int32 [N], first and last token of the answer. Both are 0 if
        the question is unanswerable or the answer is not completely inside the window; None unless
        built for training.
    """

    input_ids: np.ndarray
    bounds: np.ndarray
    example: np.ndarray
    context_start: np.ndarray
    first_offset: np.ndarray
    offsets: np.ndarray
    max_context: np.ndarray
    start_positions: np.ndarray | None
    end_positions: np.ndarray | None

    def __len__(self) -> int:
        return len(self.example)

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each window, [N]."""
        return np.diff(self.bounds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one window: input_ids and token_type_ids (int32 [length]; 1 from the context on).

        In training, also the positions.
        """
        ids = self.input_ids[self.bounds[index] : self.bounds[index + 1]]
        types = (np.arange(len(ids)) >= self.context_start[index]).astype(np.int32)
        window = {"input_ids": ids, "token_type_ids": types}
        if self.start_positions is not None and self.end_positions is not None:
            window |= {
                "start_positions": int(self.start_positions[index]),
                "end_positions": int(self.end_positions[index]),
            }
        return window

    def characters(self, index: int, start: int, end: int) -> tuple[int, int]:
        """Return the context's characters, end exclusive, of a window's tokens start to end."""
        row = self.first_offset[index] - self.context_start[index]
        return int(self.offsets[row + start, 0]), int(self.offsets[row + end, 1])


def references(examples: Columns) -> list[dict]:
    """Return the questions in the form of `mobilebert.evaluation.squad`.

    That is [{"id": ..., "answers": [texts]}].
    """
    return [{"id": key, "answers": list(answers["text"])} for key, answers in zip(examples["id"], examples["answers"])]


def windows(
    tokenizer: Tokenizer,
    examples: Columns,
    max_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    training: bool = False,
) -> Windows:
    """Cut every example into windows of at most `max_length` tokens.

    tokenizer: a `tokenizers.Tokenizer` (or BertWordPieceTokenizer) with [CLS] and [SEP], which
        neither truncates nor pads.
    max_query_length: the question keeps that many of its first tokens.
    training: label the windows with the first answer.

    Raises UserError for lengths that leave the context no room, a stride below 1 and a vocabulary
    without [CLS] or [SEP]; ValueError for a tokenizer that truncates or pads.
    """
    if doc_stride < 1:
        raise UserError(f"doc_stride is {doc_stride}; allowed: 1 or more")
    if max_query_length < 0 or max_length < max_query_length + 4:
        raise UserError(f"max_length {max_length} must exceed max_query_length {max_query_length} by 4 or more")
    if tokenizer.truncation or tokenizer.padding:
        raise ValueError("the tokenizer must neither truncate nor pad: windows are cut here")
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    if cls is None or sep is None:
        raise UserError("the vocabulary has no [CLS] or no [SEP]")

    token_ids, offsets, context_bounds, context_of = _contexts(tokenizer, examples["context"])
    questions = tokenizer.encode_batch(list(examples["question"]), add_special_tokens=False)
    spans = _answer_spans(examples, offsets, context_bounds, context_of) if training else None

    pieces, best_places, example, context_start, first_offset, positions = [], [], [], [], [], []
    for row, question in enumerate(questions):
        begin, end = context_bounds[context_of[row]], context_bounds[context_of[row] + 1]
        before = np.array([cls, *question.ids[:max_query_length], sep], dtype=np.int32)
        cuts = _cuts(int(end - begin), max_length - len(before) - 1, doc_stride)
        for (start, size), best in zip(cuts, _max_context(cuts)):
            pieces.append(np.concatenate([before, token_ids[begin + start : begin + start + size], [sep]]).astype(np.int32))
            best_places.append(np.concatenate([np.zeros(len(before), bool), best, [False]]))
            example.append(row)
            context_start.append(len(before))
            first_offset.append(begin + start)
            if spans is not None:
                first, last = spans[row] - start
                inside = 0 <= first <= last < size
                positions.append((first + len(before), last + len(before)) if inside else (0, 0))
    labels = np.array(positions, dtype=np.int32).reshape(-1, 2)
    return Windows(
        input_ids=_flat(pieces, np.int32),
        bounds=_bounds(pieces),
        example=np.array(example, dtype=np.int32),
        context_start=np.array(context_start, dtype=np.int32),
        first_offset=np.array(first_offset, dtype=np.int64),
        offsets=offsets,
        max_context=_flat(best_places, bool),
        start_positions=labels[:, 0].copy() if training else None,
        end_positions=labels[:, 1].copy() if training else None,
    )


def _flat(parts: list[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _bounds(parts: list) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def _contexts(tokenizer, texts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokenise each distinct context once; SQuAD asks some five questions about each.

    Returns ids, offsets, each context's bounds in them, and the context of each example.
    """
    distinct: dict[str, int] = {}
    context_of = np.array([distinct.setdefault(text, len(distinct)) for text in texts], dtype=np.int64)
    ids, offsets = [], []
    todo = list(distinct)
    for at in range(0, len(todo), 512):  # so as not to hold the Encodings of a whole split in memory
        for encoding in tokenizer.encode_batch(todo[at : at + 512], add_special_tokens=False):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            offsets.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2))
    flat_offsets = np.concatenate(offsets) if offsets else np.zeros((0, 2), np.int32)
    return _flat(ids, np.int32), flat_offsets, _bounds(ids), context_of


def _cuts(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Return (start, size) of each piece of a context; the last piece ends with the context.

    A context without tokens has one empty piece.
    """
    cuts, start = [], 0
    while True:
        size = min(tokens - start, room)
        cuts.append((start, size))
        if start + size == tokens:
            return cuts
        start += min(size, stride)


def _max_context(cuts: list[tuple[int, int]]) -> list[np.ndarray]:
    """Return for each piece which of its tokens score higher there than in any other piece.

    A token's score is the smaller of its left and right context, plus 0.01 of the piece's size (the
    released `_check_is_max_context`); the earlier piece wins a tie.
    """
    tokens = cuts[-1][0] + cuts[-1][1]
    most, best = np.full(tokens, -np.inf), np.zeros(tokens, np.int64)
    for piece, (start, size) in enumerate(cuts):  # needs the memory of one context only, however many pieces it has
        place = np.arange(size)
        context, part = np.minimum(place, size - 1 - place) + 0.01 * size, slice(start, start + size)
        better = context > most[part]
        most[part][better], best[part][better] = context[better], piece
    return [best[start : start + size] == piece for piece, (start, size) in enumerate(cuts)]


def _answer_spans(examples: Columns, offsets: np.ndarray, bounds: np.ndarray, context_of: np.ndarray) -> np.ndarray:
    """Return first and last token, in its context, of each example's first answer, [E, 2].

    (-1, -1) if there is none. The span holds all tokens that share a character with the answer; it
    is longer than the answer only if that begins or ends inside a token.
    """
    spans = np.full((len(context_of), 2), -1, dtype=np.int64)
    for row, answers in enumerate(examples["answers"]):
        if not len(answers["text"]):
            continue
        start = answers["answer_start"][0]
        places = offsets[bounds[context_of[row]] : bounds[context_of[row] + 1]]
        first = np.searchsorted(places[:, 1], start, side="right")
        last = np.searchsorted(places[:, 0], start + len(answers["text"][0]), side="left") - 1
        if first <= last:  # else the tokenizer dropped every character of the answer
            spans[row] = first, last
    return spans


def postprocess(
    windows: Windows,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    examples: Columns,
    n_best: int = 20,
    max_answer_length: int = 30,
    v2: bool = False,
) -> tuple[dict[str, str], dict[str, float]]:
    """Return the best answer of every example, and for v2.0 the odds that it has none.

    start_logits, end_logits: [N, at least the longest window], token 0 is [CLS]; logits past a
    window's end are ignored.

    A span is a candidate if its first and last tokens are among the `n_best` of the window's
    context, it has at most `max_answer_length` tokens and it begins at a token with `max_context`.
    The best span of one token is always a candidate, so every example gets an answer. If scores are
    equal, the earlier window and token wins.

    Returns id -> text, a substring of the context, "" only if the context has no token. Returns for
    v2 also id -> the lowest score of the empty span at [CLS] over the windows minus the answer's
    score (otherwise an empty dict). The scorer decides which to leave unanswered:
    `evaluation.squad.score_v2` and `with_null`. Raises UserError for logits that are not finite or
    do not have one row a window.
    """
    rows, longest = len(windows), int(windows.lengths.max(initial=0))
    for name, logits in (("start_logits", start_logits), ("end_logits", end_logits)):
        if logits.ndim != 2 or len(logits) != rows or logits.shape[1] < longest:
            raise UserError(f"{name} is {logits.shape}; allowed: {rows} windows of {longest} tokens or more")
    score = np.empty(rows, np.float32)
    null = np.empty(rows, np.float32)
    span = np.empty((rows, 2), np.int64)
    for at in range(0, rows, _ROWS_AT_ONCE):
        part = slice(at, min(at + _ROWS_AT_ONCE, rows))
        starts, ends = (np.asarray(logits[part, :longest], dtype=np.float32) for logits in (start_logits, end_logits))
        score[part], span[part], null[part] = _best_spans(windows, part, starts, ends, n_best, max_answer_length)

    predictions, null_odds = {}, {}
    ids, contexts = list(examples["id"]), list(examples["context"])
    first = np.searchsorted(windows.example, np.arange(len(ids) + 1))
    for row, key in enumerate(ids):
        mine = slice(first[row], first[row + 1])
        best = first[row] + int(np.argmax(score[mine]))
        if score[best] == _IMPOSSIBLE:  # a context without a single token
            predictions[key], best_score = "", 0.0
        else:
            start, end = windows.characters(best, *span[best])
            predictions[key], best_score = contexts[row][start:end], float(score[best])
        if v2:
            null_odds[key] = float(null[mine].min()) - best_score
    return predictions, null_odds


def _best_spans(windows: Windows, part: slice, starts, ends, n_best: int, max_answer_length: int):
    """Return for the windows `part` the best span's score [rows] and tokens [rows, 2], and the
    score of the empty span [rows].
    """
    bounds = windows.bounds[part.start : part.stop + 1]
    lengths = np.diff(bounds)
    token = np.arange(starts.shape[1])
    inside = token < lengths[:, None]
    if not (np.isfinite(starts[inside]).all() and np.isfinite(ends[inside]).all()):
        raise UserError("SQuAD logits must be finite numbers")
    null = starts[:, 0] + ends[:, 0]
    context = (token >= windows.context_start[part, None]) & (token < lengths[:, None] - 1)
    may_start = np.zeros_like(context)
    may_start[inside] = windows.max_context[bounds[0] : bounds[-1]]
    starts, ends = np.where(context, starts, _IMPOSSIBLE), np.where(context, ends, _IMPOSSIBLE)

    row = np.arange(len(lengths))
    first = np.argsort(-starts, axis=1, kind="stable")[:, :n_best]
    last = np.argsort(-ends, axis=1, kind="stable")[:, :n_best]
    first.sort(axis=1)  # in the order of tokens, so that argmax gives an equal score to the earlier one
    last.sort(axis=1)
    top_starts = np.where(may_start, starts, _IMPOSSIBLE)[row[:, None], first]
    size = last[:, None, :] - first[:, :, None] + 1
    pairs = top_starts[:, :, None] + ends[row[:, None], last][:, None, :]
    pairs[(size < 1) | (size > max_answer_length)] = _IMPOSSIBLE
    flat = pairs.reshape(len(row), -1)
    pair = flat.argmax(axis=1)
    score = flat[row, pair]
    span = np.stack([first[row, pair // last.shape[1]], last[row, pair % last.shape[1]]], axis=1)

    single = np.where(may_start, starts + ends, _IMPOSSIBLE)
    token_of = single.argmax(axis=1)
    better = single[row, token_of] > score
    span[better] = token_of[better, None]
    return np.maximum(score, single[row, token_of]), span, null
