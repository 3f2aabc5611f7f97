"""Quantize a fine-tuned model to int8 (paper section 4.6.3).

The model is exported to ONNX, quantized in one or more ways, and scored again with the same code.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pandas as pd
from transformers import PreTrainedModel

from mobilebert.claims.effects import paired
from mobilebert.compare.interval import quantile
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.deployment import ways
from mobilebert.deployment.engines.table import ENGINES
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import OnnxModel
from mobilebert.evaluation.scoring import evaluate, training_rows
from mobilebert.finetuning.outcomes import failure
from mobilebert.finetuning.task import new_model
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.record import Record
from mobilebert.pretraining.objective import weights_folder
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig, QuantizeConfig
from mobilebert.study.tasks import TASKS

CALIBRATION_ROWS = 64


def main(context: JobContext, study: Study) -> None:
    """Write the int8 models, their scores and the change of each from the float model's.

    Metrics of ONNX Runtime's dynamic quantization have their plain names, as in Table 6. Another
    engine's metrics begin with its name and a colon.
    """
    setting = context.settings(QuantizeConfig)
    for engine in setting.also:
        ENGINES[engine].check_installed()
    tuned = f"finetune/{context.job.name}"
    data = context.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    folder = weights_folder(context, tuned)
    source = context.record_of(tuned)
    model = new_model(setting.task, context.graph[tuned].settings(FinetuneConfig).architecture, folder).eval()
    float_file = context.state / "model.onnx"
    export_onnx(cast(PreTrainedModel, model), float_file, length=setting.length)
    tokenizer = load_tokenizer(data / "tokenizer")
    rows = training_rows(tokenizer, data, setting, CALIBRATION_ROWS)
    for engine in (*setting.also, ways.FIRST):  # FIRST is last: its predictions are the record's
        loaded, files = ways.quantize(engine, float_file, context.folder, rows)
        found = ways.describe(engine, float_file, context.folder, loaded, rows, setting.length)
        prefix = "" if engine == ways.FIRST else f"{engine}:"
        context.quantization = context.quantizations[engine] = found
        context.metrics |= {f"{prefix}{key}": float(getattr(found, key)) for key in ("bytes_before", "bytes_after")}
        metrics, details = evaluate(loaded, tokenizer, data, setting, context.folder, OnnxModel.ROWS)
        details["statuses"] = [status(setting.task, source, metrics, details)]
        details["change"] = change(setting.task, context.folder / "predictions.parquet", folder.parent / "predictions.parquet")
        context.details |= details if engine == ways.FIRST else {engine: details}
        context.artefacts += files
        best = source.details["seeds"].index(source.details["best_seed"])
        for name, value in metrics.items():
            context.samples[f"float_{name}"] = [source.samples[name][best]]
            context.metrics |= {f"{prefix}{name}": value, f"{prefix}{name}_change": value - source.samples[name][best]}
    context.artefacts += [name for name in source.artefacts if name.startswith("predictions")]
    context.label([], tuned)


def change(task: str, mine: Path, float_file: Path) -> dict[str, float] | None:
    """Return the change of accuracy from the float model in points, with its interval of 95 %.

    mine, float_file: predictions of the same rows. {"points", "low", "high", "rows"}; None for
    tasks that have no classes, and without the float model's predictions.
    """
    if not TASKS[task].labels or not float_file.is_file():
        return None
    keys = ["split", "idx"]
    both = pd.read_parquet(mine).merge(pd.read_parquet(float_file)[[*keys, "prediction"]], on=keys, suffixes=("", "_float"))
    both = both[both["split"] == "validation"]
    right = [(both[name] == both["label"]).to_numpy(int) for name in ("prediction", "prediction_float")]
    effect = paired({0: right[0] - right[1]})
    margin = quantile(0.025, effect.df) * effect.error
    return {"points": effect.value, "low": effect.value - margin, "high": effect.value + margin, "rows": effect.n}


def status(task: str, source: Record, metrics: dict, details: dict) -> str:
    """Return "failed" if the int8 model is no better than guessing, or its float model failed.

    Return "ok" otherwise. The float model is that of the best seed.
    """
    best = source.details["statuses"][source.details["seeds"].index(source.details["best_seed"])]
    shares = details["shares"].get("validation", [])
    scores = cast(dict[str, float], source.metrics | metrics)
    reason = failure(task, scores, details["rows"]["validation"], shares, [])
    return "failed" if reason or best == "failed" else "ok"
