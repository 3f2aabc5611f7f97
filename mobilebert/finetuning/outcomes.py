"""Judge fine-tuning trials and summarise their scores. All functions are pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from mobilebert.study.tasks import TASKS

LOSS_POINTS = 20  # a shorter curve is not judged: a tenth of it must be at least two points, not a single batch

Status = Literal["ok", "failed", "diverged"]


def guess(task_name: str, metrics: Mapping[str, float], rows: int) -> tuple[str, float, float]:
    """Return (metric, score of guessing, its standard error).

    A trial has learnt only if its metric is above the score of guessing by more than one standard
    error. With n rows:
    - accuracy: the share m of the commonest label (`metrics["majority"]`), error
      sqrt(m (1 - m) / n); also for MRPC and QQP, because a constant answer raises their F1
    - Matthews correlation (CoLA) and Spearman (STS-B): 0; the errors for n independent pairs are
      1 / sqrt(n) and 1 / sqrt(n - 1)
    - exact match (SQuAD): the better of answering nothing and answering the context's first word
      (`metrics["constant_exact_match"]`), error as for accuracy
    """
    task = TASKS[task_name]
    if task.is_regression:
        return "spearmanr", 0.0, 1 / math.sqrt(max(1, rows - 1))
    if "accuracy" not in task.metrics and not task.is_squad:
        return "matthews_correlation", 0.0, 1 / math.sqrt(rows)
    name, constant = ("exact_match", "constant_exact_match") if task.is_squad else ("accuracy", "majority")
    share = metrics[constant]
    return name, share, math.sqrt(share * (1 - share) / rows)


def failure(
    task_name: str, metrics: Mapping[str, float], rows: int, shares: Sequence[float], losses: Sequence[float]
) -> str | None:
    """Return why a trial that reached its end has failed; None if it has learnt.

    rows: the number of rows of the development set.
    shares: for each class, the share of these rows for which it is predicted.
    losses: the points of the training curve.

    A trial has failed if it predicts one class, if its score is not above guessing by one standard
    error (`guess`), or if the mean of the last tenth of its losses is not below that of the first
    tenth. Fewer than `LOSS_POINTS` losses are not judged.
    """
    task = TASKS[task_name]
    if task.labels and max(shares) == 1:
        return f"predicts one class: {task.labels[list(shares).index(1)]}"
    name, score, error = guess(task_name, metrics, rows)
    if metrics[name] <= score + error:
        return f"{name} {metrics[name]:.4f} is not above guessing, {score:.4f} + {error:.4f}"
    if len(losses) < LOSS_POINTS:
        return None
    tenth = len(losses) // 10
    first, last = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    if last >= first:
        return f"the training loss did not fall: {first:.4f} to {last:.4f}"
    return None


def summary(runs: Sequence[Mapping], headline: str) -> dict[str, dict]:
    """Return statistics of every metric over the trials (lines of runs.jsonl) that did not diverge.

    Failed trials count in all of them but median_ok and n_ok:
    - median, mean, sd (None for one trial), n
    - best: the value of the trial with the best headline metric
    - median_ok, n_ok: over the trials that did not fail; None and 0 if all did
    """
    ended = [run for run in runs if run["status"] != "diverged"]
    if not ended:
        return {}
    top = max(ended, key=lambda context: context["metrics"][headline])
    found = {}
    for name in top["metrics"]:
        values = [run["metrics"][name] for run in ended]
        fine = [run["metrics"][name] for run in ended if run["status"] == "ok"]
        found[name] = {
            "median": statistics.median(values),
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "best": top["metrics"][name],
            "n": len(values),
            "median_ok": statistics.median(fine) if fine else None,
            "n_ok": len(fine),
        }
    return found
