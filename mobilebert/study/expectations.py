"""Check before anything runs whether the expectations of a study can hold.

For that it lists the metrics that the record of each stage has, with their ranges.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mobilebert.study.sections import Expectation, Gate
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError, allowed, shown

if TYPE_CHECKING:
    from mobilebert.study.job import Job

Range = tuple[float, float]  # least and greatest value of a metric
SHARE, CORRELATION, COUNT, ANY = (0.0, 1.0), (-1.0, 1.0), (0.0, math.inf), (-math.inf, math.inf)

LANGUAGE_MODEL = {
    "heldout_mlm_loss": COUNT,
    "heldout_mlm_accuracy": SHARE,
    "heldout_nsp_accuracy": SHARE,
    "heldout_bits_per_byte": COUNT,
    "unigram_entropy": COUNT,
    "trigram_entropy": COUNT,
}
# Stages whose metrics are the same for every job. The metrics of the other stages depend on the
# task, or on the models that are timed.
METRICS: dict[str, dict[str, Range]] = {
    "data": {
        **dict.fromkeys(("documents_read", "documents_empty", "documents_dropped"), COUNT),
        **{f"{kind}_{split}": COUNT for kind in ("documents", "sentences", "tokens") for split in ("train", "heldout")},
        "unigram_entropy": COUNT,
        "trigram_entropy": COUNT,
        "bytes_per_token": COUNT,
        "vocab_size": COUNT,
    },
    "pretrain": LANGUAGE_MODEL,
    "checkpoint": {},
    "transfer": {"heldout_transfer_loss": COUNT},
    "distill": LANGUAGE_MODEL,
    "attention": {},
}


def metrics(job: Job) -> dict[str, Range]:
    """Return every metric that the record of a job can have, with its least and greatest value."""
    if job.stage in METRICS:
        return METRICS[job.stage]
    if job.stage == "latency":
        names = [f"{model}/{engine}" for model in job.config["architectures"] for engine in job.config["engines"]]
        return {f"{name}:{key}_ms": COUNT for name in names for key in ("p50", "p90", "p99")}
    scores = _scores(job.config["task"])
    if job.stage == "quantize":
        changes = {f"{name}_change": (least - most, most - least) for name, (least, most) in scores.items()}
        found = {**scores, **changes, "bytes_before": COUNT, "bytes_after": COUNT}
        return found | {f"{engine}:{name}": span for engine in job.config.get("also", ()) for name, span in found.items()}
    constant = {"constant_exact_match": SHARE} if TASKS[job.config["task"]].is_squad else {}
    return {**scores, **constant, "failed_share": SHARE}


def _scores(name: str) -> dict[str, Range]:
    """Return the metrics of one task's evaluation, with their ranges.

    If the data lacks a split or a kind of question, the record lacks its metrics.
    """
    task = TASKS[name]
    found = {key: CORRELATION if key in ("matthews_correlation", "pearson", "spearmanr") else SHARE for key in task.metrics}
    if task.labels:
        found["majority"] = SHARE
    if "validation_mismatched" in task.splits:
        found |= {f"mismatched_{key}": values for key, values in found.items()}
    if name == "squad_v2.0":
        found |= {f"{part}_{key}": SHARE for part in ("HasAns", "NoAns", "best") for key in ("exact", "f1")}
        found |= {"HasAns_total": COUNT, "NoAns_total": COUNT, "total": COUNT, "best_exact_thresh": ANY, "best_f1_thresh": ANY}
    return found


def check(study: str, expect: Collection[Expectation], graph: Mapping[str, Job], made: Collection[str]) -> None:
    """Raise UserError for an expectation that the study can never meet, or that is in percent.

    An expectation can never be met if it names an unknown record or metric, a record that the study
    does not make, or a value that the metric cannot reach. It is in percent if its bound or margin
    is above 1, but the metric is at most 1. made: ids of the jobs that the study runs.
    """
    for place, item in enumerate(expect):
        where = f"{study}: expect.{place}"
        above = item.above is not None
        bound = item.above if above else item.below
        assert bound is not None  # the schema asks for one of the two
        left, right = (_range(where, side, graph, made) for side in (item.metric, bound))
        lead = left[1] - right[0] if above else right[1] - left[0]
        if item.metric == bound:
            lead = 0.0
        percent = _percent(bound, item.by) if left[1] == 1 else None  # a share or a correlation
        never = lead < item.by or (lead == 0 and not item.by)
        if never or percent:
            side = "above" if above else "below"
            margin = f" by {item.by:g}" if item.by else ""
            line = f"{where}: {shown(item.metric)} is {'never' if never else 'always'} {side} {shown(bound)}{margin}"
            raise UserError(f"{line}: it lies from {left[0]:g} to {left[1]:g}{percent or ''}")


def check_gate(study: str, gate: Gate, graph: Mapping[str, Job]) -> None:
    """Raise UserError if the gate names an unknown metric or record.

    `run` need not name the record: `mobilebert seeds` runs what the gate reads.
    """
    for place, text in enumerate(gate.metrics):
        for side in text.split(" / "):
            _range(f"{study}: gate.metrics.{place}", side, graph, graph)
    for place, key in enumerate(gate.ignore):
        if key not in graph:
            raise UserError(f"{study}: gate.ignore.{place}: unknown record {shown(key)}; {allowed(graph, key)}")


def _percent(bound: str | float, by: float) -> str | None:
    """Return the end of an error about a bound or a margin above 1, which looks like a percentage.

    Return None if neither is above 1.
    """
    values = [value for value in (bound, by) if not isinstance(value, str) and value > 1]
    if not values:
        return None
    return f"; metrics of records are fractions from 0 to 1; {values[0]:g} percent is {values[0] / 100:g}"


def _range(where: str, side: str | float, graph: Mapping[str, Job], made: Collection[str]) -> Range:
    """Return the least and greatest value of one side of a comparison."""
    if not isinstance(side, str):
        return float(side), float(side)
    metric, found = side.partition(":")[2], []
    if not metric:
        raise UserError(f"{where}: {shown(side)} names no metric; write <record>:<metric>, as finetune/mobilebert/sst2:accuracy")
    for key in Expectation.records(side):
        if key not in graph:
            raise UserError(f"{where}: {shown(side)} names no record of this study: {shown(key)}; {allowed(made, key)}")
        if key not in made:
            raise UserError(f"{where}: {shown(side)}: a run of this study does not make {key}; name it in run or quantize")
        known = metrics(graph[key])
        if metric not in known:
            raise UserError(f"{where}: {key} has no metric {shown(metric)}; {allowed(known, metric) if known else 'it has none'}")
        found.append(known[metric])
    return min(least for least, _ in found), max(most for _, most in found)
