"""Predict and score a task with any model that maps a batch to logits (PyTorch or ONNX Runtime)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mobilebert.data import squad
from mobilebert.data.examples import Examples, encode, encode_squad, sample, table_file
from mobilebert.evaluation import glue
from mobilebert.evaluation import squad as squad_scores
from mobilebert.study.stage_config import TaskConfig
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import Diverged

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Forward = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]  # input_ids, attention_mask, token_type_ids -> logits
BATCH = 64
FEWEST = 4  # rows; with fewer, MKL sums the products of pooler and classifier in another order
EVALUATED = ("validation", "validation_mismatched")


def outputs(
    forward: Forward,
    examples: Examples,
    names: tuple[str, ...],
    size: int = BATCH,
    done: Callable[[int], object] = lambda rows: None,
) -> dict[str, list[np.ndarray]]:
    """Return every named output, one array a row, in the rows' order.

    A row's outputs do not depend on the other rows. A batch has up to `size` rows of equal length,
    without padding; for a float model on one CPU thread, its outputs are bit for bit those of each
    row alone. An int8 model has one range for all activations of a batch, so it needs size 1.
    done: called after each batch with its number of rows.
    Raises Diverged for values that are not finite.
    """
    found: dict[str, list] = {name: [None] * len(examples) for name in names}
    fewest = FEWEST if size > 1 and names == ("logits",) else 1  # a head over tokens always has more rows
    for rows in examples.by_length(size):
        batch = examples.batch(np.resize(rows, max(len(rows), fewest)), multiple=1)  # rows repeat to fill the batch
        result = forward({key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")})
        for name in names:
            if not np.isfinite(result[name]).all():
                raise Diverged(f"{name}: the model's outputs are not finite")
            for place, row in enumerate(rows):
                found[name][row] = result[name][place]
        done(len(rows))
    return found


def evaluate(
    forward: Forward, tokenizer: Tokenizer, data: Path, setting: TaskConfig, out: Path, size: int = BATCH
) -> tuple[dict, dict]:
    """Score a model on every labelled validation split of a task; return (metrics, details).

    metrics: fractions by the task's metric names, with `mismatched_` before those of MNLI's second
    set. details: rows, shares of the predicted classes and of the labels. For MNLI, AX is predicted
    too. Predictions are written to `out`/predictions.parquet. size: see `outputs`.
    """
    task = TASKS[setting.task]
    if task.is_squad:
        return _evaluate_squad(forward, tokenizer, data, setting, out, size)
    metrics, details, tables = {}, {"rows": {}, "shares": {}, "label_shares": {}}, []
    for role in EVALUATED:
        file = table_file(data, task.name, role)
        if not file.exists():
            continue
        frame = sample(pd.read_parquet(file), setting.eval_rows, seed=0)
        examples = encode(tokenizer, task.name, frame, setting.length)
        predictions = _predict(forward, examples, task, size)
        prefix = "mismatched_" if role == "validation_mismatched" else ""
        metrics |= {prefix + name: value for name, value in glue.score(task.name, predictions, frame["label"].to_numpy()).items()}
        details["rows"][role] = len(frame)
        if not task.is_regression:
            details["shares"][role] = glue.share(predictions, task.num_labels)
            details["label_shares"][role] = glue.share(frame["label"].to_numpy(), task.num_labels)
            metrics[f"{prefix}majority"] = max(details["label_shares"][role])
        tables.append(pd.DataFrame({"split": role, "idx": frame["idx"], "prediction": predictions, "label": frame["label"]}))
    if task.name == "mnli" and table_file(data, "ax", "test").exists():
        frame = pd.read_parquet(table_file(data, "ax", "test"))
        predictions = _predict(forward, encode(tokenizer, "ax", frame, setting.length), task, size)
        details["shares"]["ax"] = glue.share(predictions, task.num_labels)
        tables.append(pd.DataFrame({"split": "ax", "idx": frame["idx"], "prediction": predictions, "label": -1}))
    pd.concat(tables).to_parquet(out / "predictions.parquet", index=False)
    return metrics, details


def training_rows(tokenizer: Tokenizer, data: Path, setting: TaskConfig, most: int) -> list[dict[str, np.ndarray]]:
    """Return at most `most` batches of one training row each, drawn at random, without padding."""
    frame = sample(pd.read_parquet(table_file(data, setting.task, "train")), most, seed=0)
    if TASKS[setting.task].is_squad:
        examples, _ = encode_squad(tokenizer, frame, setting, training=False)
    else:
        examples = encode(tokenizer, setting.task, frame, setting.length)
    return [examples.batch(np.array([row]), multiple=1) for row in range(min(len(examples), most))]  # SQuAD: of the windows


def _predict(forward: Forward, examples: Examples, task, size: int) -> np.ndarray:
    logits = np.stack(outputs(forward, examples, ("logits",), size)["logits"])
    return np.clip(logits[:, 0], 0.0, 5.0) if task.is_regression else logits.argmax(-1)


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Return rows of different lengths as one array, filled with zeros that are never read."""
    table = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _evaluate_squad(
    forward: Forward, tokenizer: Tokenizer, data: Path, setting: TaskConfig, out: Path, size: int
) -> tuple[dict, dict]:
    v2 = setting.task == "squad_v2.0"
    frame = sample(pd.read_parquet(table_file(data, setting.task, "validation")), setting.eval_rows, seed=0)
    examples, windows = encode_squad(tokenizer, frame, setting, training=False)
    found = outputs(forward, examples, ("start_logits", "end_logits"), size)
    start, end = (padded(found[name]) for name in ("start_logits", "end_logits"))
    assert setting.max_answer_length is not None
    texts, odds = squad.postprocess(windows, start, end, frame, max_answer_length=setting.max_answer_length, v2=v2)
    wanted = squad.references(frame)
    scores = squad_scores.score_v2(texts, wanted, odds, 0.0) if v2 else squad_scores.score_v1(texts, wanted)
    answers = squad_scores.with_null(texts, odds, 0.0) if v2 else texts
    kept = pd.DataFrame({"id": list(texts), "prediction": list(texts.values())})
    ids: Any = kept["id"]
    (kept.assign(null_odds=ids.map(odds)) if v2 else kept).to_parquet(out / "predictions.parquet", index=False)
    empty = sum(not text for text in answers.values()) / len(answers)
    details = {
        "rows": {"validation": len(frame)},
        "windows": len(examples),
        "shares": {"validation": [1 - empty, empty]},  # answered, left unanswered
    }
    return {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}, details
