"""Check the columns, rows and labels of a GLUE or SQuAD table."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

from mobilebert.study.tasks import HIDDEN_LABEL, STSB_RANGE, Task
from mobilebert.util.errors import UserError, shown_key

if TYPE_CHECKING:
    import pandas as pd


def check_table(frame: pd.DataFrame, task: Task, split: str, where: str) -> None:
    """Raise UserError, in one line that begins with `where`, if `frame` is no table of this task.

    split: a role of `task.splits`; labels of a test split may be hidden (-1). where: the file's
    name. A table must have the task's columns with values of their kinds, at least one row, unique
    values of idx or id, and labels in range. In SQuAD every answer must be in its context at its
    offset, and every question of v1.1 must have an answer.
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
            wrong: Any = ~frame[name].map(lambda value: isinstance(value, str)).astype(bool)
            if wrong.any():
                raise UserError(
                    f"{where}: column {name} holds {int(wrong.sum())} values that are not text, first in row "
                    f"{int(wrong.to_numpy().argmax())}"
                )
        elif kind == "integer" and frame[name].dtype.kind not in "iu":
            raise UserError(f"{where}: column {name} is of type {frame[name].dtype}; allowed: integers")
    key = "id" if task.is_squad else "idx"
    keys: Any = frame[key]
    repeated = keys.duplicated()
    if repeated.any():
        first = shown_key(keys[repeated].iloc[0])
        raise UserError(f"{where}: {int(repeated.sum())} rows repeat the {key} of another row, first {key} {first}")
    if task.is_squad:
        _check_answers(frame, task, where)
    else:
        _check_labels(frame, task, split, where)


def _check_labels(frame: pd.DataFrame, task: Task, split: str, where: str) -> None:
    low, high = STSB_RANGE if task.is_regression else (0, task.num_labels - 1)
    allowed = f"{low} to {high}" + (f", or {HIDDEN_LABEL}" if split.startswith("test") else "")
    label: Any = frame["label"]
    kind = label.dtype.kind
    if kind not in ("fiu" if task.is_regression else "iu"):
        raise UserError(f"{where}: label of {task.name} is of type {label.dtype}; allowed: {allowed}")
    good: Any = label.between(low, high) & label.notna()
    if split.startswith("test"):
        good |= label == HIDDEN_LABEL
    if not good.all():
        idx: Any = frame["idx"]
        raise UserError(
            f"{where}: {int((~good).sum())} labels of {task.name} are out of range, first {label[~good].iloc[0]} "
            f"at idx {idx[~good].iloc[0]}; allowed: {allowed}"
        )


def plain_answers(answers: Any, where: str) -> dict[str, list]:
    """Return {"text": list[str], "answer_start": list[int]} from `answers` with lists or arrays.

    Raises UserError, in one line that begins with `where`, if `answers` has another form.
    """
    form: Any = answers if isinstance(answers, dict) else {}
    texts, starts = form.get("text"), form.get("answer_start")
    if not all(isinstance(values, list) or getattr(values, "ndim", None) == 1 for values in (texts, starts)):
        raise UserError(f"{where} must hold the lists text and answer_start")
    texts, starts = list(texts), list(starts)
    if len(texts) != len(starts):
        raise UserError(f"{where} hold {len(texts)} text but {len(starts)} answer_start")
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} hold a text that is not a string")
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
            f"{where}: {len(unanswered)} questions have no answer, first id {shown_key(unanswered[0])}; squad_v1.1 allows none "
            f"(squad_v2.0 does)"
        )
