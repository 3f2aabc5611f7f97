"""What became of a fine-tuning run, and what several of them say together. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from mobilebert.study.tasks import TASKS

LOSS_POINTS = 20  # of a curve, from which on it is judged: a tenth is then two points at least, not a single batch

Status = Literal["ok", "failed", "diverged"]


def guess(task_name: str, metrics: Mapping[str, float], rows: int) -> tuple[str, float, float]:
    """(metric, score of guessing, its standard error): what a run must exceed by one standard error.

    Accuracy against always answering the commonest label (`metrics["majority"]`, a share m of n rows: sqrt(m (1 - m) / n)),
    also for MRPC and QQP, whose F1 a constant answer raises. CoLA's Matthews correlation and STS-B's Spearman against none at
    all: of n independent pairs their standard errors are 1 / sqrt(n) and 1 / sqrt(n - 1). SQuAD's exact match against the better
    of answering nothing and of answering the context's first word (`metrics["constant_exact_match"]`).
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
    """Why a run that reached its end has failed; None for one that has learnt.

    shares: of the predicted classes on the development set, whose `rows` are counted. losses: the points of the training curve.
    A run has failed when it predicts one class, or when its score is not above guessing by one standard error (`guess`), or
    when the mean of the last tenth of its training losses is not below that of the first tenth; of fewer than `LOSS_POINTS`
    losses nothing is said.
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
    """Of every metric over the runs (records of runs.jsonl) that reached an end, failed ones among them:

    median, mean, sd (None for one run), best (of the run with the best headline metric), n; median_ok and n_ok, the same
    median over the runs that did not fail, None and 0 where all did.
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
