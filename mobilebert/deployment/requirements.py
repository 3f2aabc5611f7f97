"""Check before any work that the ways to int8 have their packages, and can quantize the models.

Importing this module imports no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobilebert.deployment.engines.table import ENGINES, INT8, Engine
from mobilebert.deployment.quantized_files import AWARE
from mobilebert.jobs.freshness import freshness_of
from mobilebert.study.graph import jobs_in_scope
from mobilebert.study.job import Graph, Job
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig, QuantizeConfig
from mobilebert.util.errors import UserError

# Ways that need more than their engine, or that are no engine of `mobilebert latency`.
NEEDS: Mapping[str, Engine] = {
    **{
        way: replace(ENGINES[way], packages=("tensorflow", "ai_edge_litert"), extra="workflow,deploy,tensorflow,litert")
        for way in ("litert-dynamic", "litert-int8")
    },
    AWARE: replace(ENGINES["onnxruntime"], name=AWARE),
    "quanto": Engine(
        "quanto", "PyTorch, int8 weights", "pytorch", INT8, packages=("optimum", "optimum.quanto"), extra="workflow,deploy,quanto"
    ),
}
CLIPPED = ("relu", "relu6")  # activations that quantization-aware training may replace by relu6, as the released code does


def check_installed(way: str) -> None:
    """Raise UserError, with the command that installs it, if a package of the way is missing."""
    (NEEDS.get(way) or ENGINES[way]).check_installed()


def unfit(way: str, architecture: Mapping[str, Any]) -> str | None:
    """Return in one line why the way cannot quantize a model; None if it can.

    architecture: the model's, as in the configuration of a fine-tuning job.
    """
    kind, norm = architecture["model_type"], architecture.get("normalization_type", "layer_norm")
    if way.startswith("litert") and kind != "mobilebert":
        return f"{way}: runs models of the MobileBERT family; this is a {kind} model"
    if way == AWARE and (kind, norm) != ("mobilebert", "no_norm"):
        return f"{way}: the released quantization-aware training is MobileBERT's with no_norm; this is {kind}, {norm}"
    activation = architecture.get("hidden_act", "relu")
    if way == AWARE and activation not in CLIPPED:
        return f"{way}: the released quantization-aware training is for {' and '.join(CLIPPED)}; hidden_act is {activation}"
    return None


def check_jobs(study: Study, results: Path, graph: Graph, ids: Iterable[str]) -> None:
    """Raise UserError if a way of the jobs `ids` lacks a package, or fits no model of the study.

    A way that fits some of the models is not refused here: the records of the others say why they
    go without it. Jobs that are up to date are not checked.
    """
    due = [job for key in ids if _is_due(job := graph[key], study, results, graph)]
    named = {*jobs_in_scope(study, graph), *(job.id for job in due)}
    models = [_architecture(graph, graph[key]) for key in graph if key in named and graph[key].stage == "quantize"]
    for way in dict.fromkeys(way for job in due for way in job.settings(QuantizeConfig).also):
        check_installed(way)
        reasons = [unfit(way, model) for model in models]
        if reasons[0] and all(reasons):
            raise UserError(reasons[0])


def _is_due(job: Job, study: Study, results: Path, graph: Graph) -> bool:
    return job.stage == "quantize" and freshness_of(results, study.name, job, graph) != "current"


def _architecture(graph: Graph, job: Job) -> Mapping[str, Any]:
    return graph[f"finetune/{job.name}"].settings(FinetuneConfig).architecture
