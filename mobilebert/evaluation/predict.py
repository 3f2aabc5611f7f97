"""Predict with any fine-tuned checkpoint: `mobilebert evaluate` and `mobilebert predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mobilebert.data.source import check_task
from mobilebert.evaluation import input_rows, prediction_files
from mobilebert.evaluation.checkpoints import Model, load_checkpoint
from mobilebert.study.tasks import TASKS, Task
from mobilebert.util.errors import UserError

# --- commands


def evaluate_checkpoint(
    source: str, task_name: str, data: str, split: str | None = None, out: Path | None = None, threads: int = 1
) -> dict:
    """Return a checkpoint's metrics on the labelled rows of `data`; write predictions to `out`.

    The keys are those of `prediction_files.score`.
    """
    task = TASKS[check_task(task_name)]
    roles = input_rows.splits(data, task, split)
    prediction_files.check_output(out, task, len(roles))
    tables = {role: input_rows.labelled_table(data, task, role) for role in roles}
    model = load_checkpoint(source, task, threads)
    result = {"task": task.name, "unit": "percent", "rows": {}, "labels": {}}
    kept = []
    for role, table in tables.items():
        prediction_files.count_rows(result, task, role, table)
        found = model.predict(table, role)
        if task.is_squad:
            texts = dict(zip(found["id"], found["prediction"]))
            odds = dict(zip(found["id"], found["null_odds"])) if "null_odds" in found else None
            result |= prediction_files.squad_metrics(task, texts, odds, 0.0, table)
            kept.append(found)
        else:
            predictions = found["prediction"].to_numpy()
            result |= prediction_files.glue_metrics(task, role, predictions, table)
            kept.append(pd.DataFrame({"split": role, "idx": table["idx"], "prediction": predictions, "label": table["label"]}))
    if out is not None:
        prediction_files.write(out, task, pd.concat(kept))
    return result


def predict_rows(
    source: str, task_name: str, file: Path | None, texts: dict[str, str | None], out: Path | None = None, threads: int = 1
) -> None:
    """Write predictions for a user's rows to `out`, or as JSON lines to standard output.

    file: a .tsv, .jsonl or .parquet table with the task's text columns (`Task.text_columns`). Its
        `idx` (SQuAD: `id`) is kept if it has one, else the rows are numbered.
    texts: a single row in place of a file: text and text_pair, or question and context.
    """
    task = TASKS[check_task(task_name)]
    prediction_files.check_output(out, task)
    if file is not None and any(text is not None for text in texts.values()):
        raise UserError(f"{file}: rows come from the file or from the command line, not from both")
    frame = checked_rows(
        _one_row(texts, task) if file is None else input_rows.read_rows(file, _columns(task)), task, str(file or "text")
    )
    found = predicted(load_checkpoint(source, task, threads), frame)
    if out is None:
        sys.stdout.write(prediction_files.json_lines(found))
    else:
        prediction_files.write(out, task, found)


def predicted(model: Model, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions for checked rows, with their keys, and class names or answers."""
    task, found = model.task, model.predict(frame, model.task.name)
    if not task.is_squad:
        found.insert(0, "idx", frame["idx"])
        if task.labels:
            found.insert(2, "label", [task.labels[code] for code in found["prediction"]])
    elif "null_odds" in found:
        found.insert(1, "answer", found["prediction"].where(found["null_odds"] <= 0.0, ""))  # "" is unanswerable
    return found


def _columns(task: Task) -> tuple[str, ...]:
    return (*task.text_columns, *(("id",) if task.is_squad else ("idx", "index")))


def _one_row(texts: dict[str, str | None], task: Task) -> pd.DataFrame:
    options = ("question", "context") if task.is_squad else ("text", "text_pair")[: len(task.text_columns)]
    if {name for name, text in texts.items() if text is not None} != set(options):
        wanted = " and ".join(f"--{name.replace('_', '-')}" for name in options)
        raise UserError(f"{task.name} reads {' and '.join(task.text_columns)}: give {wanted}, or a file with --input")
    try:
        "".join(texts[name] or "" for name in options).encode()
    except UnicodeEncodeError:  # Python turns bytes of another encoding in arguments into surrogates
        raise UserError(f"{' and '.join(options)}: not UTF-8") from None
    return pd.DataFrame({column: [texts[name]] for column, name in zip(task.text_columns, options)})


def checked_rows(frame: pd.DataFrame, task: Task, where: str) -> pd.DataFrame:
    """Return the text columns and the key of a user's rows; number the rows if they have no key.

    Raises UserError, which begins with `where`, for a column that is missing or not text.
    """
    key = "id" if task.is_squad else "idx"
    if key == "idx" and "index" in frame:  # the name in the server's files
        if "idx" in frame:
            raise UserError(f"{where}: has both idx and index; one of them is allowed")
        frame = frame.rename(columns={"index": "idx"})
    missing = [name for name in task.text_columns if name not in frame]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; {task.name} reads {', '.join(task.text_columns)}")
    if not len(frame):
        raise UserError(f"{where}: no rows")
    for name in task.text_columns:
        for row, value in enumerate(frame[name]):
            if not isinstance(value, str):
                raise UserError(f"{where}: column {name} is not text in row {row}")
    if key not in frame:
        frame = frame.assign(**{key: [str(row) if task.is_squad else row for row in range(len(frame))]})
    frame = frame.assign(**{key: _keys(pd.Series(frame[key]), key, task, where)})
    keys: Any = frame[key]
    if (repeated := keys.duplicated()).any():
        raise UserError(f"{where}: {key} {keys[repeated].iloc[0]} is there twice")
    return pd.DataFrame(frame[[key, *task.text_columns]]).reset_index(drop=True)


def _keys(values: pd.Series, key: str, task: Task, where: str) -> list[int | str]:
    """Return the rows' keys, text or integers; SQuAD's as text, so that 5 and "5" are one key."""
    found: list[int | str] = []
    for row, value in enumerate(values.astype(object)):
        if isinstance(value, float) and value.is_integer():  # pandas reads integers as floats if one is missing
            value = int(value)
        number = isinstance(value, int | np.integer) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        if not (number or isinstance(value, str)):
            raise UserError(
                f"{where}: {key} of row {row} is {value!r:.40}; allowed: text or an integer in every row, or no {key} at all"
            )
        found.append(int(value) if number and not task.is_squad else str(value))
    if len({type(value) for value in found}) > 1:
        raise UserError(f"{where}: {key} is text in some rows and an integer in others; one kind is allowed")
    return found
