"""SQuAD scores against the published score of a released prediction file and the definitions."""

import gzip
import json
import math
import string

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilebert.data.squad import references
from mobilebert.evaluation import squad
from mobilebert.util.errors import UserError

quick = settings(max_examples=80, deadline=None)
words = st.sampled_from(["the", "a", "An", "cat", "Cat.", "dog", "42", "U.S.", "é", "—", "!", "anthem"])
texts = st.lists(words, max_size=4).map(" ".join)


def plain_tokens(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def plain_f1(prediction: str, answer: str, empty: float) -> float:
    predicted, actual = plain_tokens(prediction), plain_tokens(answer)
    if not predicted and not actual:
        return empty
    left, same = list(actual), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(predicted), same / len(actual)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\ta U.S. hat!", "cats us hat"),
        ("anthem of theatre", "anthem of theatre"),
        ("the-end", "theend"),  # punctuation goes first, so this is one word and no article
        ("a\u2014b", "\u2014b"),  # a dash outside ASCII stays, and bounds the article
        ("", ""),
    ],
)
def test_normalise(text, normal):
    assert squad.normalise(text) == normal


@quick
@given(texts, texts)
def test_exact_and_f1_against_their_definitions(prediction, answer):
    assert squad.exact(prediction, answer) == float(plain_tokens(prediction) == plain_tokens(answer))
    assert squad.f1(prediction, answer) == pytest.approx(plain_f1(prediction, answer, empty=0.0))
    assert squad.f1_v2(prediction, answer) == pytest.approx(plain_f1(prediction, answer, empty=1.0))


def test_v1_takes_the_best_answer():
    golds = [{"id": "x", "answers": ["red dog", "cat"]}, {"id": "y", "answers": ["red dog"]}]
    scores = squad.score_v1({"x": "The cat", "y": "dog"}, golds)
    assert scores == pytest.approx({"exact_match": 1 / 2, "f1": (1 + 2 / 3) / 2})


def test_released_predictions_score_as_published(real_data):
    examples = pd.read_parquet(real_data / "squad/v1.1/validation.parquet")
    with gzip.open(real_data / "squad/reference_predictions/bert_ensemble_v1.1.json.gz") as file:
        scores = squad.score_v1(json.load(file), references(examples))
    assert (round(100 * scores["exact_match"], 2), round(100 * scores["f1"], 2)) == (86.21, 92.20)


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_gold_answers_score_one(version, real_data):
    golds = references(pd.read_parquet(real_data / "squad" / version / "validation.parquet"))
    first = {gold["id"]: gold["answers"][0] if gold["answers"] else "" for gold in golds}
    scores = squad.score_v1(first, golds) if version == "v1.1" else squad.score_v2(first, golds)
    assert (scores["exact_match"], scores["f1"]) == (1.0, 1.0)
    if version == "v2.0":
        assert (scores["total"], scores["NoAns_total"]) == (11_873, 5_945)
        empty = squad.score_v2(dict.fromkeys(first, ""), golds)
        assert (empty["HasAns_f1"], empty["NoAns_f1"], empty["f1"]) == (0.0, 1.0, 5_945 / 11_873)


questions = st.lists(st.tuples(texts, st.lists(texts, max_size=3), st.integers(-4, 4)), min_size=1, max_size=8)


def plain_score(rows, threshold, index):
    """Return v2.0's mean exact (index 0) or F1 (1); odds above the threshold mean no answer."""
    total = 0.0
    for prediction, answers, odds in rows:
        text = "" if odds > threshold else prediction
        golds = [answer for answer in answers if plain_tokens(answer)] or [""]
        total += max(
            float(plain_tokens(text) == plain_tokens(gold)) if index == 0 else plain_f1(text, gold, 1.0) for gold in golds
        )
    return total / len(rows)


@quick
@given(questions, st.integers(-5, 5))
def test_v2_against_its_definition_at_every_threshold(rows, threshold):
    predictions = {str(row): prediction for row, (prediction, _, _) in enumerate(rows)}
    golds = [{"id": str(row), "answers": answers} for row, (_, answers, _) in enumerate(rows)]
    odds = {str(row): value / 2 for row, (_, _, value) in enumerate(rows)}
    scores = squad.score_v2(predictions, golds, odds, threshold / 2)
    without = squad.score_v2(squad.with_null(predictions, odds, threshold / 2), golds)
    for index, (name, best) in enumerate((("exact_match", "best_exact"), ("f1", "best_f1"))):
        assert scores[name] == without[name] == pytest.approx(plain_score(rows, threshold, index))
        # Odds run from -4 to 4, so these thresholds cover every possible outcome, "answer nothing"
        # included.
        sweep = [plain_score(rows, candidate, index) for candidate in range(-5, 5)]
        assert scores[best] == pytest.approx(max(sweep))
        assert plain_score(rows, 2 * scores[f"{best}_thresh"], index) == pytest.approx(scores[best])
    assert "best_f1" not in without
    for part, wanted in (("HasAns", True), ("NoAns", False)):
        mine = [row for row in rows if bool(row[1]) == wanted]
        assert scores.get(f"{part}_total", 0) == len(mine)
        if mine:
            assert scores[f"{part}_f1"] == pytest.approx(plain_score(mine, threshold, 1))
            assert scores[f"{part}_exact"] == pytest.approx(plain_score(mine, threshold, 0))


GOLDS = [{"id": "x", "answers": ["cat"]}, {"id": "y", "answers": []}]


@pytest.mark.parametrize(
    ("predictions", "odds", "message"),
    [
        ({"x": ""}, None, "predictions lack 1 of 2 question ids, first y"),
        ({"x": "", "y": "", "z": ""}, None, "predictions hold unknown 1 of 2 question ids, first z"),
        ({"x": "", "y": ""}, {"x": 0.0}, "null odds lack 1 of 2"),
        ({"x": "", "y": ""}, {"x": 0.0, "y": math.nan}, "finite"),
    ],
)
def test_v2_refuses(predictions, odds, message):
    with pytest.raises(UserError, match=message):
        squad.score_v2(predictions, GOLDS, odds)


def test_v1_refuses():
    with pytest.raises(UserError, match="first y"):
        squad.score_v1({"x": ""}, GOLDS)
    with pytest.raises(UserError, match="question y has no answer"):
        squad.score_v1({"x": "", "y": ""}, GOLDS)
    with pytest.raises(UserError, match="empty"):
        squad.score_v1({}, [])
