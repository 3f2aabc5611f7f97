"""The tasks of the paper's Tables 4 to 6, 8 and 9: which files they are, which columns they have, how they are scored.

Column and label names are those of the Hugging Face datasets `nyu-mll/glue`, `rajpurkar/squad` and
`rajpurkar/squad_v2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING

from mobilebert.errors import UserError, shown_key

if TYPE_CHECKING:
    import pandas as pd

HIDDEN_LABEL = -1  # what GLUE ships in place of a test label
STSB_RANGE = (0.0, 5.0)


@dataclass(frozen=True)
class Task:
    """One task.

    column: its heading in the paper's Table 4 (SQuAD: Table 5).
    folder: where its files lie below the data folder.
    text_columns: one sentence, or a pair in the order the model reads it.
    labels: class names by class index; None for regression and for SQuAD.
    num_labels: outputs of the head: the classes, 1 for regression, 2 (start and end) for SQuAD.
    splits: role -> file stem. `train` and `validation` are needed wherever a task lists them; `validation_mismatched`
        and the test splits may be absent.
    metrics: names of the scores; the first is the one that the paper prints for the development set.
    test_metric: the one that Table 4 prints, from the test server.
    """

    name: str
    column: str
    folder: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    num_labels: int
    splits: Mapping[str, str]
    metrics: tuple[str, ...]
    test_metric: str

    @property
    def is_squad(self) -> bool:
        return self.folder.startswith("squad/")

    @property
    def is_regression(self) -> bool:
        return self.labels is None and not self.is_squad

    @property
    def columns(self) -> dict[str, str]:
        """Each column that a table of this task must have, with its kind: text, class, score, integer or answers."""
        if self.is_squad:
            return {"id": "text", "title": "text", "context": "text", "question": "text", "answers": "answers"}
        kinds = dict.fromkeys(self.text_columns, "text")
        return {**kinds, "label": "score" if self.is_regression else "class", "idx": "integer"}


_SPLITS = MappingProxyType({"train": "train", "validation": "validation", "test": "test"})
_MNLI_SPLITS = MappingProxyType(
    {
        "train": "train",
        "validation": "validation_matched",
        "validation_mismatched": "validation_mismatched",
        "test": "test_matched",
        "test_mismatched": "test_mismatched",
    }
)
_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")


def _glue(name, column, text_columns, labels, metrics, test_metric=None, splits=_SPLITS) -> Task:
    num_labels = len(labels) if labels else 1
    return Task(name, column, f"glue/{name}", text_columns, labels, num_labels, splits, metrics, test_metric or metrics[0])


def _squad(version: str) -> Task:
    splits = MappingProxyType({"train": "train", "validation": "validation"})
    return Task(
        name=f"squad_v{version}",
        column=f"SQuAD v{version}",
        folder=f"squad/v{version}",
        text_columns=("question", "context"),
        labels=None,
        num_labels=2,
        splits=splits,
        metrics=("f1", "exact_match"),
        test_metric="f1",
    )


# MRPC: Tables 6, 8 and 9 print development accuracy, Table 4 the test server's F1. The columns of Table 4 are F1 for
# MRPC and QQP and Spearman for STS-B.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        _glue("mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), test_metric="f1"),
        _glue("stsb", "STS-B", _PAIR, None, ("spearmanr", "pearson")),
        _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
        _glue("mnli", "MNLI-m", _NLI, _THREE_WAY, ("accuracy",), splits=_MNLI_SPLITS),
        _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
        _glue("rte", "RTE", _PAIR, _ENTAILMENT, ("accuracy",)),
        _glue("wnli", "WNLI", _PAIR, ("not_entailment", "entailment"), ("accuracy",)),
        _glue("ax", "AX", _NLI, _THREE_WAY, ("matthews_correlation",), splits=MappingProxyType({"test": "test"})),
        _squad("1.1"),
        _squad("2.0"),
    )
}


def check_table(frame: pd.DataFrame, task: Task, split: str, where: str) -> None:
    """Raise UserError, in one line that begins with `where`, unless `frame` is a table of this task.

    split: a role of `task.splits`; labels of a test split may be hidden (-1). `where` names the file. Checked: columns,
    rows, text, unique idx or id, labels in range, and for SQuAD that every answer stands in its context at its offset
    and that every question of v1.1 has one.
    """
    if split not in task.splits:
        raise UserError(f"{where}: {task.name} has no split {split!r}; allowed: {', '.join(task.splits)}")
    missing = [name for name in task.columns if name not in frame.columns]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; {task.name} needs {', '.join(task.columns)}")
    if len(frame) == 0:
        raise UserError(f"{where}: the {split} split of {task.name} is empty")
    for name, kind in task.columns.items():
        if kind == "text":
            wrong = ~frame[name].map(lambda value: isinstance(value, str)).astype(bool)
            if wrong.any():
                raise UserError(
                    f"{where}: column {name} holds {int(wrong.sum())} values that are not text, first in row "
                    f"{int(wrong.to_numpy().argmax())}"
                )
        elif kind == "integer" and frame[name].dtype.kind not in "iu":
            raise UserError(f"{where}: column {name} is of type {frame[name].dtype}; allowed: integers")
    key = "id" if task.is_squad else "idx"
    repeated = frame[key].duplicated()
    if repeated.any():
        first = shown_key(frame[key][repeated].iloc[0])
        raise UserError(f"{where}: {int(repeated.sum())} rows repeat the {key} of another row, first {key} {first}")
    if task.is_squad:
        _check_answers(frame, task, where)
    else:
        _check_labels(frame, task, split, where)


def _check_labels(frame: pd.DataFrame, task: Task, split: str, where: str) -> None:
    low, high = STSB_RANGE if task.is_regression else (0, task.num_labels - 1)
    allowed = f"{low} to {high}" + (f", or {HIDDEN_LABEL}" if split.startswith("test") else "")
    label = frame["label"]
    kind = label.dtype.kind
    if kind not in ("fiu" if task.is_regression else "iu"):
        raise UserError(f"{where}: label of {task.name} is of type {label.dtype}; allowed: {allowed}")
    good = label.between(low, high) & label.notna()
    if split.startswith("test"):
        good |= label == HIDDEN_LABEL
    if not good.all():
        raise UserError(
            f"{where}: {int((~good).sum())} labels of {task.name} are out of range, first {label[~good].iloc[0]} "
            f"at idx {frame['idx'][~good].iloc[0]}; allowed: {allowed}"
        )


def plain_answers(answers, where: str) -> dict[str, list]:
    """Return {"text": list[str], "answer_start": list[int]}, whatever kind of lists the values of `answers` are.

    Raises UserError, in one line that begins with `where`, for anything else.
    """
    texts, starts = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
    if not all(isinstance(values, list) or getattr(values, "ndim", None) == 1 for values in (texts, starts)):
        raise UserError(f"{where} must hold the lists text and answer_start")
    texts, starts = list(texts), list(starts)
    if len(texts) != len(starts):
        raise UserError(f"{where} hold {len(texts)} text but {len(starts)} answer_start")
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} hold a text that is no text")
    for start in starts:
        if type(start) is not int and (isinstance(start, bool) or not isinstance(start, Integral)):  # the first test is fast
            raise UserError(f"{where} hold the answer_start {start!r:.40}; allowed: integers")
    return {"text": texts, "answer_start": [int(start) for start in starts]}


def _check_answers(frame: pd.DataFrame, task: Task, where: str) -> None:
    misplaced, unanswered = [], []
    for row, (key, context, answers) in enumerate(zip(frame["id"], frame["context"], frame["answers"])):
        answers = plain_answers(answers, f"{where}: row {row}: answers of id {shown_key(key)}")
        texts, starts = answers["text"], answers["answer_start"]
        if not texts:
            unanswered.append(key)
        if any(start < 0 or not text or not context.startswith(text, start) for text, start in zip(texts, starts)):
            misplaced.append(key)
    if misplaced:
        raise UserError(
            f"{where}: {len(misplaced)} questions have an answer that is not in the context at its answer_start, "
            f"first id {shown_key(misplaced[0])}"
        )
    if unanswered and task.name == "squad_v1.1":
        raise UserError(
            f"{where}: {len(unanswered)} questions have no answer, first id {shown_key(unanswered[0])}; squad_v1.1 has none such "
            f"(squad_v2.0 has)"
        )
