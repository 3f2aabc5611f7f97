"""Compute SQuAD scores as the official scripts of v1.1 (Rajpurkar et al. 2016) and v2.0 (2018) do.

Every score is a fraction (the official scripts print percentages). A reference is
`{"id": ..., "answers": [texts]}`; an unanswerable question has no answers. The keys are those of
the official v2.0 script, except that the main score is `exact_match` for both versions.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mobilebert.util.errors import UserError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, English articles or extra space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(prediction: str, answer: str) -> float:
    """Return 1.0 if the normalised texts are equal, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the F1 of two bags of normalised words (v1.1).

    It is 0.0 if they share no word, so also if both are empty.
    """
    predicted, actual = normalise(prediction).split(), normalise(answer).split()
    same = sum((Counter(predicted) & Counter(actual)).values())
    return 2 * same / (len(predicted) + len(actual)) if same else 0.0


def f1_v2(prediction: str, answer: str) -> float:
    """Return `f1`, but 1.0 if both texts are empty once normalised (v2.0)."""
    if not normalise(prediction) and not normalise(answer):
        return 1.0
    return f1(prediction, answer)


def _best(function: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    return max(function(prediction, answer) for answer in answers)


def _check_ids(what: str, given: Mapping[str, object], references: Sequence[Mapping]) -> None:
    if not references:
        raise UserError("SQuAD references are empty")
    known = {reference["id"] for reference in references}
    for problem, ids in (("lack", known - given.keys()), ("hold unknown", given.keys() - known)):
        if ids:
            raise UserError(f"SQuAD {what} {problem} {len(ids)} of {len(known)} question ids, first {min(ids)}")


def score_v1(predictions: Mapping[str, str], references: Sequence[Mapping]) -> dict[str, float]:
    """Return `exact_match` and `f1`: means over questions of the best over the reference answers.

    predictions: id -> text.
    Raises UserError for missing or unknown ids, and for a question without an answer.
    """
    _check_ids("predictions", predictions, references)
    for reference in references:
        if not len(reference["answers"]):
            raise UserError(f"question {reference['id']} has no answer; score it as SQuAD v2.0")
    pairs = [(predictions[reference["id"]], reference["answers"]) for reference in references]
    return {
        "exact_match": sum(_best(exact, *pair) for pair in pairs) / len(pairs),
        "f1": sum(_best(f1, *pair) for pair in pairs) / len(pairs),
    }


def with_null(predictions: Mapping[str, str], null_odds: Mapping[str, float], threshold: float) -> dict[str, str]:
    """Return the predictions, with "" (unanswerable) if the null odds exceed the threshold.

    This is the form of a v2.0 submission.
    """
    return {key: "" if null_odds[key] > threshold else text for key, text in predictions.items()}


def score_v2(
    predictions: Mapping[str, str],
    references: Sequence[Mapping],
    null_odds: Mapping[str, float] | None = None,
    threshold: float = 0.0,
) -> dict[str, float]:
    """Return the scores of v2.0, with unanswerable questions.

    predictions: id -> best text, "" for unanswerable.
    null_odds: id -> score of no answer minus score of that text (the released code's
        null_odds.json). A question whose odds exceed `threshold` counts as predicted unanswerable.
        With None the predictions count unchanged.

    Returns `exact_match`, `f1`, `total`; for answerable and for unanswerable questions, if there
    are any, `HasAns_exact`, `HasAns_f1`, `HasAns_total`, `NoAns_exact`, `NoAns_f1`, `NoAns_total`;
    with null_odds also `best_exact`, `best_f1` and the thresholds that attain them,
    `best_exact_thresh`, `best_f1_thresh`. Raises UserError for missing or unknown ids and for odds
    that are not finite.
    """
    _check_ids("predictions", predictions, references)
    texts = predictions
    if null_odds is not None:
        _check_ids("null odds", null_odds, references)
        if not np.isfinite(list(null_odds.values())).all():
            raise UserError("SQuAD null odds must be finite numbers")
        texts = with_null(predictions, null_odds, threshold)
    # An answer that normalises to nothing is dropped; a question without answers expects "".
    answers = [[text for text in reference["answers"] if normalise(text)] or [""] for reference in references]
    ids = [reference["id"] for reference in references]
    has_answer = np.array([len(reference["answers"]) > 0 for reference in references])

    result: dict[str, float] = {}
    for name, function in (("exact", exact), ("f1", f1_v2)):
        values = np.array([_best(function, texts[key], golds) for key, golds in zip(ids, answers)])
        result["exact_match" if name == "exact" else name] = float(values.mean())
        for part, rows in (("HasAns", has_answer), ("NoAns", ~has_answer)):
            if rows.any():
                result[f"{part}_{name}"] = float(values[rows].mean())
        if null_odds is not None:
            raw = np.array([_best(function, predictions[key], golds) for key, golds in zip(ids, answers)])
            null = np.array([_best(function, "", golds) for golds in answers])
            odds = np.array([null_odds[key] for key in ids], dtype=np.float64)
            result[f"best_{name}"], result[f"best_{name}_thresh"] = best_threshold(raw, null, odds)
    result["total"] = len(ids)
    for part, rows in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        if rows.any():
            result[f"{part}_total"] = int(rows.sum())
    return result


def best_threshold(answered: np.ndarray, null: np.ndarray, odds: np.ndarray) -> tuple[float, float]:
    """Return the best mean score over all thresholds, and the lowest threshold that attains it.

    answered, null: [n], each question's score if it is answered and if it is called unanswerable.
    odds: [n], the null odds.

    This differs from the official script on purpose in two points, because the script's result can
    belong to no threshold. Questions with equal odds are answered together. "Answer nothing" is a
    threshold below all odds, not 0: the script's odds are probabilities, ours are not.
    """
    order = np.argsort(odds, kind="stable")
    sorted_odds = odds[order]
    # totals[k]: the k questions with the lowest odds are answered. A threshold attains k only if
    # question k is the last of those with equal odds.
    totals = null.sum() + np.concatenate([[0.0], np.cumsum((answered - null)[order])])
    attainable = np.concatenate([[True], sorted_odds[1:] != sorted_odds[:-1], [True]])
    best = int(np.argmax(np.where(attainable, totals, -np.inf)))
    threshold = sorted_odds[best - 1] if best else np.nextafter(sorted_odds[0], -np.inf)
    return float(totals[best] / len(odds)), float(threshold)
