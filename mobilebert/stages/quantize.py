"""Quantize a fine-tuned model to int8 (paper section 4.6.3).

The model is exported to ONNX, quantized and scored again with the same code.
"""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedModel

from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.int8 import describe
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.evaluation.scoring import evaluate
from mobilebert.finetuning.outcomes import failure
from mobilebert.finetuning.task import new_model
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.record import Record
from mobilebert.pretraining.objective import weights_folder
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig, QuantizeConfig


def main(context: JobContext, study: Study) -> None:
    """Write the int8 model, its scores and their change from the float model's."""
    setting = context.settings(QuantizeConfig)
    tuned = f"finetune/{context.job.name}"
    data = context.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    folder = weights_folder(context, tuned)
    source = context.record_of(tuned)
    model = new_model(setting.task, context.graph[tuned].settings(FinetuneConfig).architecture, folder).eval()
    float_file, int8_file = context.state / "model.onnx", context.folder / "model.int8.onnx"
    export_onnx(cast(PreTrainedModel, model), float_file, length=setting.length)
    context.metrics |= {key: float(value) for key, value in quantize_int8(float_file, int8_file).items()}
    context.quantization = describe(float_file, int8_file, setting.length)
    tokenizer = load_tokenizer(data / "tokenizer")
    metrics, details = evaluate(OnnxModel(int8_file), tokenizer, data, setting, context.folder, OnnxModel.ROWS)
    context.metrics |= metrics
    best = source.details["seeds"].index(source.details["best_seed"])
    context.details |= {**details, "statuses": [status(setting.task, source, metrics, details)]}
    for name, value in metrics.items():
        context.samples[f"float_{name}"] = [source.samples[name][best]]
        context.metrics[f"{name}_change"] = value - source.samples[name][best]
    context.artefacts += ["model.int8.onnx", *(name for name in source.artefacts if name.startswith("predictions"))]
    context.label([], tuned)


def status(task: str, source: Record, metrics: dict, details: dict) -> str:
    """Return "failed" if the int8 model is no better than guessing, or its float model failed.

    Return "ok" otherwise. The float model is that of the best seed.
    """
    best = source.details["statuses"][source.details["seeds"].index(source.details["best_seed"])]
    shares = details["shares"].get("validation", [])
    scores = cast(dict[str, float], source.metrics | metrics)
    reason = failure(task, scores, details["rows"]["validation"], shares, [])
    return "failed" if reason or best == "failed" else "ok"
