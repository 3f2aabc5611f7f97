"""SQuAD windows against tokenizers' overflow and BERT's definitions; answers against loops."""

import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from mobilebert.data import squad
from mobilebert.evaluation.squad import score_v2
from mobilebert.util.errors import UserError

quick = settings(max_examples=60, deadline=None)
LETTERS = "abcdefg"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *("##" + letter for letter in LETTERS),
    "bad",
    ".",
    ",",
]


def small_tokenizer() -> BertWordPieceTokenizer:
    return BertWordPieceTokenizer({token: index for index, token in enumerate(VOCABULARY)}, lowercase=True)


TOKENIZER = small_tokenizer()
word = st.one_of(st.text(LETTERS, min_size=1, max_size=5), st.sampled_from(["Bad", "Café", "zoë", ".", "日本", ",", "bád"]))
space = st.sampled_from([" ", "  ", "\n", " \u00a0", ", ", "."])  # punctuation touches an answer and is not part of it


@st.composite
def question(draw):
    """Draw a context and a question; an answerable one has an answer of whole words."""
    pieces = draw(st.lists(word, min_size=1, max_size=30))
    context, begins = "", []
    for piece in pieces:
        begins.append(len(context))
        context += piece + draw(space)
    text = " ".join(draw(st.lists(word, max_size=8)))
    answers = {"text": [], "answer_start": []}
    if draw(st.booleans()):
        first = draw(st.integers(0, len(pieces) - 1))
        last = draw(st.integers(first, min(first + 4, len(pieces) - 1)))
        end = begins[last] + len(pieces[last])
        answers = {"text": [context[begins[first] : end]], "answer_start": [begins[first]]}
    return {"context": context, "question": text, "answers": answers}


def table(rows) -> dict[str, list]:
    return {"id": [f"q{row}" for row in range(len(rows))], **{key: [row[key] for row in rows] for key in rows[0]}}


shapes = st.tuples(st.integers(12, 24), st.integers(1, 20), st.integers(0, 8))


@quick
@given(st.lists(question(), min_size=1, max_size=3), shapes)
def test_windows_against_the_overflow_of_tokenizers(rows, shape):
    max_length, doc_stride, max_query_length = shape
    examples = table(rows)
    found = squad.windows(TOKENIZER, examples, max_length, doc_stride, max_query_length)
    expected, owners = [], []
    for index, row in enumerate(rows):
        # The library cuts an overlap, not a step. It cannot cut both texts, so the question is cut
        # beforehand.
        kept = TOKENIZER.encode(row["question"], add_special_tokens=False).ids[:max_query_length]
        room = max_length - len(kept) - 3
        cutter = small_tokenizer()
        cutter.enable_truncation(room + 2, stride=max(room - doc_stride, 0))
        encoding = cutter.encode(row["context"])  # [CLS] piece [SEP]
        for piece in [encoding, *encoding.overflowing]:
            types = [0] * (len(kept) + 2) + [1] * (len(piece.ids) - 1)
            expected.append(([2, *kept, 3, *piece.ids[1:]], types, piece.offsets[1:-1]))
            owners.append(index)
    assert found.example.tolist() == owners
    assert found.start_positions is None
    for index, (ids, types, places) in enumerate(expected):
        window = found[index]
        assert window["input_ids"].tolist() == ids
        assert window["token_type_ids"].tolist() == types
        start = int(found.context_start[index])
        for token, offsets in enumerate(places):
            assert found.characters(index, start + token, start + token) == tuple(offsets)
    assert found.lengths.tolist() == [len(ids) for ids, _, _ in expected]


@quick
@given(st.lists(question(), min_size=1, max_size=3), shapes)
def test_labels_map_back_to_the_answer(rows, shape):
    found = squad.windows(TOKENIZER, table(rows), *shape, training=True)
    for index, owner in enumerate(found.example):
        context, answers = rows[owner]["context"], rows[owner]["answers"]
        start, end = int(found.start_positions[index]), int(found.end_positions[index])
        last = int(found.lengths[index]) - 2
        shown = found.characters(index, int(found.context_start[index]), last)
        inside = False
        if answers["text"]:
            begin, finish = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
            inside = shown[0] <= begin and finish <= shown[1]
        if inside:
            first, stop = found.characters(index, start, end)
            assert context[first:stop] == answers["text"][0]
        else:
            assert (start, end) == (0, 0)


@quick
@given(st.lists(question(), min_size=1, max_size=2), shapes)
# Pieces of 381 and 273 tokens: if the margins differ by 1, the 0.01 of the size decides.
@example([{"context": "a " * 400, "question": "", "answers": {"text": [], "answer_start": []}}], (384, 127, 0))
def test_max_context_against_its_definition(rows, shape):
    found = squad.windows(TOKENIZER, table(rows), *shape)
    for owner in range(len(rows)):
        mine = np.flatnonzero(found.example == owner)
        begin = found.first_offset[mine] - found.first_offset[mine[0]]
        size = found.lengths[mine] - found.context_start[mine] - 1
        for token in range(begin[-1] + size[-1]):
            best, chosen = None, None
            for window, (start, length) in enumerate(zip(begin, size)):
                if start <= token < start + length:
                    value = min(token - start, start + length - 1 - token) + 0.01 * length
                    if best is None or value > best:
                        best, chosen = value, window
            for window, index in enumerate(mine):
                if begin[window] <= token < begin[window] + size[window]:
                    place = found.bounds[index] + found.context_start[index] + token - begin[window]
                    assert found.max_context[place] == (window == chosen)
    outside = np.ones(len(found.input_ids), dtype=bool)
    for index in range(len(found)):
        outside[found.bounds[index] + found.context_start[index] : found.bounds[index + 1] - 1] = False
    assert not found.max_context[outside].any()


def plain_postprocess(found, starts, ends, examples, n_best, max_answer_length):
    """Return id -> text and id -> null odds, by the definition in loops."""
    answers, odds = {}, {}
    for owner, key in enumerate(examples["id"]):
        candidates, nulls = [], []
        for index in np.flatnonzero(found.example == owner):
            context = range(found.context_start[index], found.lengths[index] - 1)
            nulls.append(starts[index, 0] + ends[index, 0])
            allowed = [token for token in context if found.max_context[found.bounds[index] + token]]
            top_starts = sorted(context, key=lambda token, row=index: -starts[row, token])[:n_best]
            top_ends = sorted(context, key=lambda token, row=index: -ends[row, token])[:n_best]
            spans = [(s, e) for s in sorted(top_starts) for e in sorted(top_ends) if s <= e < s + max_answer_length]
            spans += [(token, token) for token in context]
            candidates += [(starts[index, s] + ends[index, e], index, s, e) for s, e in spans if s in allowed]
        best = max(candidates, key=lambda candidate: candidate[0])  # max keeps the first of equal scores
        first, last = found.characters(best[1], best[2], best[3])
        answers[key], odds[key] = examples["context"][owner][first:last], float(min(nulls) - best[0])
    return answers, odds


@quick
@given(
    st.lists(question(), min_size=1, max_size=4),
    shapes,
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_postprocess_against_plain_loops(rows, shape, seed, n_best, max_answer_length):
    examples = table(rows)
    found = squad.windows(TOKENIZER, examples, *shape)
    random = np.random.default_rng(seed)
    # Halves give equal scores and exact sums; values past a window's end must not matter.
    starts, ends = np.round(random.normal(size=(2, len(found), 26)) * 6).astype(np.float32) / 2
    past = np.arange(26) >= found.lengths[:, None]
    starts[past], ends[past] = np.nan, np.inf
    answers, odds = squad.postprocess(found, starts, ends, examples, n_best, max_answer_length, v2=True)
    expected, expected_odds = plain_postprocess(found, starts, ends, examples, n_best, max_answer_length)
    assert odds == pytest.approx(expected_odds, abs=1e-5)
    assert answers == expected
    assert squad.postprocess(found, starts, ends, examples, n_best, max_answer_length) == (answers, {})


def test_a_context_without_a_token_is_answered_with_nothing():
    examples = {"id": ["x"], "context": [" \n"], "question": ["bad"], "answers": [{"text": [], "answer_start": []}]}
    found = squad.windows(TOKENIZER, examples, training=True)
    assert found[0]["input_ids"].tolist() == [2, VOCABULARY.index("bad"), 3, 3]
    logits = np.ones((1, 4), np.float32)
    assert squad.postprocess(found, logits, logits, examples, v2=True) == ({"x": ""}, {"x": 2.0})


def test_wrong_arguments_are_refused():
    examples = {"id": ["x"], "context": ["a b"], "question": ["c"], "answers": [{"text": ["b"], "answer_start": [2]}]}
    with pytest.raises(UserError, match="doc_stride is 0"):
        squad.windows(TOKENIZER, examples, doc_stride=0)
    with pytest.raises(UserError, match="max_length 67 must exceed"):
        squad.windows(TOKENIZER, examples, max_length=67)
    cutting = small_tokenizer()
    cutting.enable_truncation(8)
    with pytest.raises(ValueError, match="neither truncate nor pad"):
        squad.windows(cutting, examples)
    found = squad.windows(TOKENIZER, examples)
    good = np.zeros((1, 6), np.float32)
    for bad in (good[:, :5], np.zeros((2, 6), np.float32)):
        with pytest.raises(UserError, match="allowed: 1 windows of 6 tokens"):
            squad.postprocess(found, good, bad, examples)
    with pytest.raises(UserError, match="finite"):
        squad.postprocess(found, good, np.full((1, 6), np.nan), examples)


@pytest.mark.parametrize(("version", "count"), [("v1.1", 10_833), ("v2.0", 12_232)])
def test_official_window_counts_and_a_round_trip_of_every_answer(version, count, real_data):
    tokenizer = BertWordPieceTokenizer(str(real_data / "vocab.txt"), lowercase=True)
    examples = pd.read_parquet(real_data / "squad" / version / "validation.parquet")
    found = squad.windows(tokenizer, examples, training=True)
    assert len(found) == count
    assert int(found.lengths.max()) == 384

    # A model that knows every label answers almost everything. It loses answers that begin or end
    # inside a word, have more than 30 tokens, or lie across every window's edge.
    rows = np.arange(count)
    starts, ends = np.zeros((2, count, 384), np.float32)
    starts[rows, found.start_positions], ends[rows, found.end_positions] = 9.0, 9.0
    answers, odds = squad.postprocess(found, starts, ends, examples, v2=True)
    golds = squad.references(examples)
    if version == "v1.1":
        odds = None  # windows without the answer point at [CLS], yet all is answerable
    scores = score_v2(answers, golds, odds, threshold=0.0)
    assert 0.99 < scores["HasAns_exact"] < 1.0
    if odds is not None:
        assert scores["NoAns_exact"] == 1.0


@pytest.mark.parametrize(("version", "rows", "unanswerable"), [("v1.1", 11_923, 0), ("v2.0", 12_270, 347)])
def test_every_real_training_answer_maps_back_to_its_text(version, rows, unanswerable, real_data):
    """Every window's label covers the answer's own characters but for 33 windows.

    In these the answer begins or ends inside one token ("7" of "1817", "Japan" of "Japanese"). No
    span of tokens can cut it, and the label takes that token whole. No answer is lost: each lies
    wholly inside at least one window.
    """
    tokenizer = BertWordPieceTokenizer(str(real_data / "vocab.txt"), lowercase=True)
    examples = pd.read_parquet(real_data / "squad" / version / "train.parquet")
    found = squad.windows(tokenizer, examples, training=True)
    contexts, answers = examples["context"].tolist(), examples["answers"].tolist()
    assert len(examples) == rows
    assert sum(not len(answer["text"]) for answer in answers) == unanswerable

    exact, begins, ends, mapped = 0, 0, 0, set()
    for index in np.flatnonzero(found.start_positions):
        row, first, last = found.example[index], found.start_positions[index], found.end_positions[index]
        text, begin = answers[row]["text"][0], answers[row]["answer_start"][0]
        mapped.add(row)
        start, end = found.characters(index, first, last)
        if (start, end) == (begin, begin + len(text)):
            assert contexts[row][start:end] == text
            exact += 1
            continue
        # Extra characters belong to the same token as the answer's edge, and none lie beyond that
        # token.
        inside_first = start < begin < found.characters(index, first, first)[1]
        inside_last = found.characters(index, last, last)[0] < begin + len(text) < end
        assert inside_first or start == begin
        assert inside_last or end == begin + len(text)
        assert inside_first or inside_last
        begins, ends = begins + inside_first, ends + inside_last
    assert len(mapped) == rows - unanswerable
    assert (exact, begins, ends) == (11_944, 10, 23)  # 11,977 windows are labelled; none both begins and ends so


def test_memory_of_a_long_context_grows_with_its_length_alone():
    """A table of pieces by tokens would take 500 times as much."""
    cuts = squad._cuts(64_000, 381, 128)
    assert len(cuts) == 1 + math.ceil((64_000 - 381) / 128)
    tracemalloc.start()
    shown = squad._max_context(cuts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(part.sum() for part in shown) == 64_000  # one piece a token
    assert peak < 64_000 * 8 * 4
