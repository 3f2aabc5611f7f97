"""Read, write and score files of predictions (`mobilebert score`), without torch.

GLUE: a table (TSV or parquet) with the columns `idx` (in the server's format `index`) and
`prediction`: a class by number or name, or STS-B's value. A column `split` names the split of each
row, as in the predictions.parquet of a study.
SQuAD: the official JSON {id: text}, plain or .gz, and for v2.0 a second file with the official null
odds {id: number}; or a parquet table with the columns `id`, `prediction` and for v2.0 `null_odds`.

Scores are percentages, as in the official scripts, on the test server and in the paper.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mobilebert.data.reading import LARGEST_PREDICTIONS, json_file, parquet
from mobilebert.data.source import check_task, label
from mobilebert.data.squad import references
from mobilebert.evaluation import glue, input_rows, squad
from mobilebert.study.tasks import TASKS, Task
from mobilebert.util.errors import UserError, shown_key
from mobilebert.util.files import write_atomically

NAMED_BY_SERVER = ("mnli", "qnli", "rte", "ax")  # a submission names their classes; other tasks' are numbers
SPLITS = ("train", "validation", "validation_mismatched", "test", "test_mismatched", "ax")  # roles, and AX (MNLI's model)
INTEGER = re.compile(r"-?[0-9]{1,18}")
NUMBER = re.compile(r" *[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)? *")
FORMATS = (".parquet", ".jsonl", ".tsv", ".json")


# --- predictions of GLUE


def read_glue(path: Path, task: Task) -> pd.DataFrame:
    """Return the GLUE predictions in `path`: `idx`, `prediction`, and `split` if it is there.

    Predictions are class numbers or finite values. Raises UserError if the file is not such a
    table, an idx is repeated, or a value is not a prediction of the task.
    """
    if path.suffix == ".parquet":
        frame = parquet(path, dict.fromkeys(("idx", "index", "prediction", "split"), "scalar"), LARGEST_PREDICTIONS)
    else:
        frame = input_rows.tsv(path, LARGEST_PREDICTIONS)
    if {"index", "idx"} <= set(frame):
        raise UserError(f"{path}: has both idx and index; one of them is allowed")
    frame = frame.rename(columns={"index": "idx"})
    missing = [name for name in ("idx", "prediction") if name not in frame]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; needed are idx (or index) and prediction, tab-separated")
    if not len(frame):
        raise UserError(f"{path}: no predictions")
    idx = [_integer(value, f"{path}: row {row}") for row, value in enumerate(frame["idx"])]
    if "split" in frame and (unknown := [value for value in frame["split"] if not (isinstance(value, str) and value in SPLITS)]):
        raise UserError(f"{path}: column split holds {unknown[0]!r:.80}; allowed: {', '.join(SPLITS)}")
    convert = _value if task.is_regression else _class
    values = [convert(value, task, f"{path}: idx {key}") for key, value in zip(idx, frame["prediction"])]
    found: Any = frame[["split"]].copy() if "split" in frame else pd.DataFrame(index=frame.index)
    found["idx"], found["prediction"] = idx, values
    repeated = found.drop(columns="prediction").duplicated()
    if repeated.any():
        raise UserError(f"{path}: {int(repeated.sum())} idx are there twice, first {found['idx'][repeated].iloc[0]}")
    return found


def _integer(value, where: str) -> int:
    if isinstance(value, str) and INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, int | float) and math.isfinite(value) and value == int(value):
        return int(value)
    raise UserError(f"{where}: column idx holds {value!r:.80}; allowed: integers")


def _value(value, task: Task, where: str) -> float:
    number = math.nan
    if isinstance(value, int | float) or (isinstance(value, str) and NUMBER.fullmatch(value)):
        number = float(value)
    if not math.isfinite(number):
        raise UserError(f"{where}: prediction {value!r:.80} is not a finite number")
    return number


def _class(value, task: Task, where: str) -> int:
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    for code, name in enumerate(task.labels or ()):
        if text in (str(code), name):
            return code
    raise UserError(f"{where}: prediction {text!r:.80} is no class of {task.name}; allowed: {_classes(task)}")


def _classes(task: Task) -> str:
    return f"0 to {task.num_labels - 1} or {', '.join(task.labels or ())}"


def _aligned(found: pd.DataFrame, table: pd.DataFrame, where: Path) -> np.ndarray:
    """Return predictions in the order of the table's rows.

    Raises UserError unless both hold the same idx.
    """
    _check_ids(where, "idx", found["idx"], table["idx"])
    return found.set_index("idx")["prediction"].loc[table["idx"].tolist()].to_numpy()


def _check_ids(where: Path, kind: str, given, wanted) -> None:
    given, wanted = set(given), set(wanted)
    for problem, ids in (("lacks", wanted - given), ("holds unknown", given - wanted)):
        if ids:
            first = shown_key(min(ids, key=str))
            raise UserError(f"{where}: {problem} {kind} {first} ({len(ids)} such; the table has {len(wanted)} rows)")


# --- predictions of SQuAD


def read_json(path: Path) -> dict:
    """Return the JSON object in a file, plain or .gz.

    Raises UserError if there is no such file or object, or if it holds a key twice.
    """

    def once(pairs: list) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set = set()
            first = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise UserError(f"{path}: {len(pairs) - len(found)} ids are there twice, first {shown_key(first)}")
        return found

    found = json_file(path, once, LARGEST_PREDICTIONS)
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a JSON {type(found).__name__}; allowed: one object, question id to prediction")
    return found


def read_squad(path: Path) -> tuple[dict[str, str], dict[str, float] | None]:
    """Return id -> text, and id -> null odds (None unless a parquet table with that column).

    Raises UserError if the file does not hold SQuAD predictions.
    """
    odds = None
    if path.suffix == ".parquet":
        frame = parquet(path, {"id": "text", "prediction": "text", "null_odds": "number"}, LARGEST_PREDICTIONS)
        missing = [name for name in ("id", "prediction") if name not in frame]
        if missing:
            raise UserError(f"{path}: no column {', '.join(missing)}; needed are id and prediction, for squad_v2.0 null_odds")
        for row, key in enumerate(frame["id"]):
            if not isinstance(key, str):
                raise UserError(f"{path}: row {row}: column id holds something else than text")
        ids: Any = frame["id"]
        repeated = ids.duplicated()
        if repeated.any():
            raise UserError(f"{path}: {int(repeated.sum())} ids are there twice, first {shown_key(ids[repeated].iloc[0])}")
        texts = dict(zip(frame["id"], frame["prediction"]))
        if "null_odds" in frame:
            odds = _odds(dict(zip(frame["id"], frame["null_odds"])), path)
    else:
        texts = read_json(path)
    for key, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{path}: the prediction of id {shown_key(key)} is not text but {type(text).__name__}")
    return texts, odds


def _odds(values: dict, path: Path) -> dict[str, float]:
    for key, value in values.items():
        # Not converted and tested: an integer of 309 digits or more overflows as a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise UserError(f"{path}: the null odds of id {shown_key(key)} are {value!r:.40}; allowed: finite numbers")
    return {key: float(value) for key, value in values.items()}


# --- scores


def glue_metrics(task: Task, split: str, predictions: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    """Return the task's scores on one split in percent, MNLI's second set with `mismatched_`."""
    prefix = "mismatched_" if split.endswith("mismatched") else ""
    scores = glue.score(task.name, predictions, table["label"].to_numpy())
    return {prefix + name: 100 * value for name, value in scores.items()}


def squad_metrics(task: Task, texts: dict, odds: dict | None, threshold: float, table: pd.DataFrame) -> dict[str, float]:
    """Return the official scores in percent.

    Thresholds (in the unit of the null odds) and counts of questions are unchanged.
    """
    golds = references(table)
    v2 = task.name == "squad_v2.0"
    scores = squad.score_v2(texts, golds, odds, threshold) if v2 else squad.score_v1(texts, golds)
    return {name: value if name.endswith(("total", "thresh")) else 100 * value for name, value in scores.items()}


def score(task_name: str, data: str, predictions: Path, null_odds: Path | None = None, split: str | None = None) -> dict:
    """Return the metrics of a file of predictions.

    They are {"task": ..., "unit": "percent", "rows": {split: rows}, "labels": {split: text},
    metric: value, ...}. A split has a label if its rows are not the complete official split
    (`data.source.label`).

    split: a role of `Task.splits`. None is the validation split; for MNLI predictions with a column
        `split`, both validation splits.
    null_odds: a file for official v2.0 predictions, which are scored unchanged; the best thresholds
        are reported too. A study's table holds an answer to every question and its odds; odds
        above 0 make the question unanswerable.
    """
    task = TASKS[check_task(task_name)]
    if null_odds is not None and task.name != "squad_v2.0":
        raise UserError(f"null odds belong to squad_v2.0, not to {task.name}")
    result = {"task": task.name, "unit": "percent", "rows": {}, "labels": {}}
    if task.is_squad:
        (role,) = input_rows.splits(data, task, split)
        table = input_rows.labelled_table(data, task, role)
        texts, odds = read_squad(predictions)
        _check_ids(predictions, "id", texts, table["id"])
        threshold = math.inf if null_odds is not None else 0.0
        if null_odds is not None:
            odds = _odds(read_json(null_odds), null_odds)
            _check_ids(null_odds, "id", odds, table["id"])
        count_rows(result, task, role, table)
        return result | squad_metrics(task, texts, odds, threshold, table)
    found = read_glue(predictions, task)
    roles = input_rows.splits(data, task, split)
    if split is None:
        there = set(found["split"]) if "split" in found else {roles[0]}
        roles = [role for role in roles if role in there] or roles[:1]
    for role in roles:
        table = input_rows.labelled_table(data, task, role)
        mine: Any = found[found["split"] == role] if "split" in found else found
        count_rows(result, task, role, table)
        result |= glue_metrics(task, role, _aligned(mine, table, predictions), table)
    return result


def count_rows(result: dict, task: Task, role: str, table: pd.DataFrame) -> None:
    """Add to `result` how many rows of one split were scored, and a label if that is not all."""
    result["rows"][role] = len(table)
    if text := label(task.name, task.splits[role], len(table)):
        result["labels"][role] = text


# --- writing


def check_output(path: Path | None, task: Task, parts: int = 1) -> None:
    """Raise UserError, before any work, if predictions cannot be written to `path`.

    The format must be known and the folder writable. parts: how many splits the file will hold.
    """
    known = [suffix for suffix in FORMATS if suffix != (".tsv" if task.is_squad else ".json")]
    if path is not None and path.suffix not in known:
        raise UserError(f"{path}: predictions of {task.name} are written as {', '.join(known)}")
    if path is not None and parts > 1 and path.suffix == ".tsv":
        raise UserError(f"{path}: one .tsv holds one split; name it with --split, or write .parquet")
    if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise UserError(f"{path}: cannot be written; name a file in a folder that exists and is writable")


def server_tsv(task: Task, idx: Iterable, predictions: Iterable) -> str:
    """Return the text of a file for the GLUE server, with the header `index`, `prediction`.

    Classes are names for MNLI, QNLI, RTE and AX, else numbers.
    """
    lines = ["index\tprediction"]
    for key, value in zip(idx, predictions):
        if task.is_regression:
            value = f"{value:.6f}"
        elif task.name in NAMED_BY_SERVER:
            assert task.labels is not None
            value = task.labels[value]
        lines.append(f"{key}\t{value}")
    return "\n".join(lines) + "\n"


def write(path: Path, task: Task, frame: pd.DataFrame) -> None:
    """Write predictions in the format that the name's ending says.

    .parquet and .jsonl hold every column. .tsv is the GLUE server's format. .json is SQuAD's
    official one, for v2.0 with "" if the null odds exceed 0.
    """
    if path.suffix == ".parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        content = buffer.getvalue()
    elif path.suffix == ".tsv":
        content = server_tsv(task, frame["idx"], frame["prediction"]).encode()
    elif path.suffix == ".jsonl":
        content = json_lines(frame).encode()
    else:
        texts = dict(zip(frame["id"], frame["prediction"]))
        if "null_odds" in frame:
            texts = squad.with_null(texts, dict(zip(frame["id"], frame["null_odds"])), 0.0)
        content = json.dumps(texts, ensure_ascii=False).encode()
    write_atomically(path, content)


def json_lines(frame: pd.DataFrame) -> str:
    """Return the table as JSON lines, one object a row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dict(orient="records"))
