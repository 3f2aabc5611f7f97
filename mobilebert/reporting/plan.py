"""Estimate the tokens, FLOPs, hours and memory of every job of a study before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mobilebert.data.source import OFFICIAL_ROWS
from mobilebert.finetuning.search import passes, rungs, total
from mobilebert.modeling.cost import MASK_RATE, Cost, cost
from mobilebert.study.graph import final_job, jobs_in_scope
from mobilebert.study.job import Graph, Job
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import (
    Architecture,
    FinetuneConfig,
    LatencyConfig,
    ModelConfig,
    StageConfig,
    TaskConfig,
    TrainingConfig,
)
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError, allowed, shown
from mobilebert.util.machine import cores

WIDE = 512  # blocks at least this wide are bound by matrix products, narrower ones by memory traffic


@dataclass(frozen=True)
class Device:
    """A device's speed.

    fp32, bf16: dense peaks in TFLOP/s.
    wide, narrow: the share of the peak that we assume for wide (BERT, IB-BERT) and narrow models.
    origin: where the peaks come from.
    """

    fp32: float
    bf16: float
    wide: float
    narrow: float
    origin: str


DEVICES = {
    # 2 cores x 2 AVX2 FMA units x 8 floats x 2 FLOPs x 3.0 GHz = 0.19 TFLOP/s. There are no bf16
    # units, so bf16 runs no faster.
    "cpu-2-cores": Device(0.19, 0.19, 0.5, 0.25, "2 cores with AVX2 at 3 GHz, by arithmetic"),
    "a100": Device(19.5, 312, 0.4, 0.12, "NVIDIA A100 SXM data sheet"),
    "h100": Device(67, 989, 0.4, 0.12, "NVIDIA H100 SXM data sheet, without sparsity"),
    "h200": Device(67, 989, 0.4, 0.12, "NVIDIA H200 SXM data sheet, without sparsity"),
}


@dataclass(frozen=True)
class Line:
    """One job's estimate. Training needs `state` bytes, and `per_token` for each batch token."""

    id: str
    tokens: float
    flops: float
    hours: float
    state: float = 0
    per_token: float = 0


def plan(study: Study, graph: Graph, device: str | None = None) -> str:
    """Return the plan of every job that a bare `snakemake` runs, as text.

    device: a key of `DEVICES`, or "cpu" for this machine; None is "cpu" if the study's device is
    cpu, else "h100". Raises UserError if it is unknown.
    """
    device = device or ("cpu" if study.device == "cpu" else "h100")
    if device not in (*DEVICES, "cpu"):
        raise UserError(f"device: unknown device {shown(device)}; {allowed([*DEVICES, 'cpu'])}")
    made_of = DEVICES[device] if device in DEVICES else this_machine()
    found = [_line(study, graph, graph[key], made_of) for key in jobs_in_scope(study, graph)]
    whole = Line(
        "total",
        sum(item.tokens for item in found),
        sum(item.flops for item in found),
        sum(item.hours for item in found),
    )
    width = max(len(item.id) for item in found)
    lines = [
        f"study {study.name}: {len(found)} jobs; estimates for {device}, not measurements{_warning(device)}",
        f"{device}: dense peak {made_of.bf16:.3g} TFLOP/s in bf16, {made_of.fp32:.3g} in fp32 ({made_of.origin})",
        f"assumed share of it: {made_of.wide:.0%} in blocks {WIDE} or more wide, {made_of.narrow:.0%} in narrower ones",
        f"rows: {_rows_origin(study)}; SQuAD counts one window a question",
        "memory: weights, gradients and moments in 4 bytes each, a frozen teacher's weights; and what a token of a batch adds",
        *_search_lines(study),
        "",
        f"{'job':{width}}  {'tokens':>9}  {'FLOPs':>9}  {'hours':>9}  {'GiB':>7}  {'MiB/token':>9}",
    ]
    for item in [*found, whole]:
        memory = f"{_size(item.state, 2**30):>7}  {_size(item.per_token, 2**20):>9}" if item is not whole else ""
        numbers = f"{_short(item.tokens):>9}  {_short(item.flops):>9}  {_hours(item.hours):>9}"
        lines.append(f"{item.id:{width}}  {numbers}  {memory}".rstrip())
    return "\n".join(lines)


def this_machine() -> Device:
    """Return this machine; its peak is measured in half a second with float32 matrix products."""
    import numpy as np

    size, fastest, count, start = 1024, math.inf, 0, time.perf_counter()
    matrix = np.ones((size, size), np.float32)
    while count < 2 or time.perf_counter() - start < 0.4:
        before = time.perf_counter()
        matrix @ matrix
        fastest, count = min(fastest, time.perf_counter() - before), count + 1
    peak = 2 * size**3 / fastest / 1e12
    origin = f"measured now: the fastest of {count} products of {size} x {size} float32 matrices on {cores()} cores"
    return Device(peak, peak, DEVICES["cpu-2-cores"].wide, DEVICES["cpu-2-cores"].narrow, origin)


def _warning(device: str) -> str:
    return "; rough: other programs slow the measured product, and small models run at another share of it" * (device == "cpu")


def _search_lines(study: Study) -> list[str]:
    """Return two lines on how the trials are counted, or [] if the study does not search."""
    config = study.finetune  # the counts are the same for every task
    if config.search == "none":
        return []
    counts = (f"{count} trials" + f" on 1/{part} of the rows" * (part > 1) for count, part in rungs(config))
    seeds = f"{len(config.seeds)} seeds of the best"
    return [
        f"search {config.search}: {' + '.join(counts)} a task, then {seeds}",
        "a trial whose number of epochs the search has yet to choose counts with the mean of all numbers it may choose",
    ]


def _line(study: Study, graph: Graph, job: Job, device: Device) -> Line:
    tokens, parts = _work(study, graph, job)
    config = job.settings(StageConfig)
    halved = isinstance(config, TrainingConfig | TaskConfig) and config.precision == "bf16"
    peak = 1e12 * (device.bf16 if halved else device.fp32)
    seconds = sum(flops / peak / (device.wide if _width(model) >= WIDE else device.narrow) for model, flops in parts)
    minutes = config.max_minutes if isinstance(config, TrainingConfig) else None
    share = 60 * minutes / seconds if minutes else 1.0  # fraction of the steps that max_minutes allows
    flops = sum(flops for _, flops in parts) * share
    return Line(job.id, tokens * share, flops, seconds * share / 3600, *_memory(study, graph, job))


def _memory(study: Study, graph: Graph, job: Job) -> tuple[float, float]:
    """Return the bytes that training needs before any batch, and those that each batch token adds.

    bf16 halves the second number. Both are computed for the pre-training model, so they are upper
    bounds for fine-tuning, which has no masked-LM head. Return 0 and 0 if a job does not train, or
    if its model is neither a MobileBERT nor a BERT.
    """
    config = job.settings(StageConfig)
    if not isinstance(config, TrainingConfig | FinetuneConfig) or config.architecture["model_type"] not in ("mobilebert", "bert"):
        return 0, 0
    figures = cost(config.architecture, config.length)
    state = figures.training_state_bytes
    if job.stage in ("distill", "transfer"):
        teacher = _teacher(study, graph, job)
        state += 4 * cost(teacher, config.length).parameters
    return state, figures.saved_bytes_per_token / (2 if config.precision == "bf16" else 1)


def _teacher(study: Study, graph: Graph, job: Job) -> Architecture:
    """Return the architecture of the teacher of a job's student."""
    teacher = study.models[job.name].teacher
    final = teacher and final_job(study, teacher)
    assert final
    return graph[final].settings(ModelConfig).architecture


def _width(architecture: Mapping) -> int:
    return architecture.get("intra_bottleneck_size", architecture["hidden_size"])


def _work(study: Study, graph: Graph, job: Job) -> tuple[float, list[tuple[Architecture, float]]]:
    """Return the tokens read, and the FLOPs of each architecture.

    A backward pass of training counts twice its forward pass.
    """
    config = job.settings(StageConfig)
    if isinstance(config, TrainingConfig):
        student = config.architecture
        tokens = config.steps * config.batch_size * config.length
        figures = cost(student, config.length)
        if job.stage == "pretrain":
            return tokens, [(student, tokens * figures.training_flops_per_token)]
        teacher = _teacher(study, graph, job)
        guide = cost(teacher, config.length)
        if job.stage == "transfer":  # layer-wise losses need no masked-LM head; an upper bound for PKT's lower stages
            return tokens, [(student, 3 * tokens * _forward(figures)), (teacher, tokens * _forward(guide))]
        logits = MASK_RATE * guide.mlm_flops_per_prediction
        own = tokens * figures.training_flops_per_token
        return tokens, [(student, own), (teacher, tokens * (_forward(guide) + logits))]
    if job.stage in ("finetune", "quantize"):
        return _task_work(study, graph, job)
    if isinstance(config, LatencyConfig):
        runs = (config.rounds + config.warmup) * config.batch_size * len(config.engines)
        models = config.architectures.values()
        parts: list[tuple[Architecture, float]] = [(item, runs * cost(item, config.length).encoder_flops) for item in models]
        return runs * len(parts) * config.length, parts
    return 0, []  # data and checkpoint have no matrix products, attention those of a few words


def _task_work(study: Study, graph: Graph, job: Job) -> tuple[float, list[tuple[Architecture, float]]]:
    config, tuned = job.settings(TaskConfig), graph[f"finetune/{job.name}"].settings(FinetuneConfig)
    architecture = tuned.architecture
    evaluated = config.length * _rows(study, config, "validation")
    if config.task == "mnli":
        evaluated += config.length * _rows(study, config, "validation_mismatched")
    trained = 0
    if job.stage == "finetune":
        trained = config.length * _rows(study, config, "train") * passes(config)
        evaluated *= total(config)
    if architecture["model_type"] in ("bag-of-embeddings", "auto"):
        return trained + evaluated, []  # a bag has next to no matrix products; a baseline's sizes are not known yet
    each = _forward(cost(architecture, config.length))
    return trained + evaluated, [(architecture, (3 * trained + evaluated) * each)]


def _rows(study: Study, config: TaskConfig, role: str) -> int:
    task = TASKS[config.task]
    split = task.splits[role]
    if study.data.source == "synthetic":
        from mobilebert.data.synthetic import ROWS, SQUAD_ROWS

        rows = SQUAD_ROWS[split] if task.is_squad else ROWS[split.split("_")[0]]
    else:
        rows = OFFICIAL_ROWS[task.name][split]
    limit = config.train_rows if role == "train" else config.eval_rows
    return min(rows, limit or rows)


def _rows_origin(study: Study) -> str:
    if study.data.source == "synthetic":
        return "of the generated tables"
    if study.data.source.startswith("local:"):
        return "of the official splits, of which a local folder may hold fewer"
    return "of the official splits"


def _forward(figures: Cost) -> float:
    """Return the FLOPs of the encoder's forward pass for one token."""
    return figures.encoder_flops / figures.seq


def _short(number: float) -> str:
    return f"{number:.2e}" if number else "–"


def _size(number: float, unit: int) -> str:
    return f"{number / unit:.3f}" if number else "–"


def _hours(hours: float) -> str:
    if not hours:
        return "–"
    if hours < 0.0001:
        return "<0.0001"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.4f}" if hours < 0.1 else f"{hours:.1f}"
