"""Quantize a fine-tuned model to int8 (paper section 4.6.3).

The model is exported to ONNX, quantized in one or more ways, and scored again with the same code.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from mobilebert.claims.effects import paired
from mobilebert.compare.interval import quantile
from mobilebert.data.examples import encode, encode_squad, sample, table_file
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.deployment import ways
from mobilebert.deployment.engines.table import ENGINES
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import OnnxModel
from mobilebert.evaluation.scoring import evaluate
from mobilebert.finetuning.outcomes import failure
from mobilebert.finetuning.task import new_model
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.record import Record
from mobilebert.pretraining.objective import weights_folder
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig, QuantizeConfig, TaskConfig
from mobilebert.study.tasks import TASKS

CALIBRATION_ROWS = 64


def main(context: JobContext, study: Study) -> None:
    """Write the int8 models, their scores and the change of each from the float model's.

    The metrics of ONNX Runtime's dynamic quantization have their plain names, as in Table 6. Those
    of another engine begin with its name and a colon.
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
    rows = calibration(tokenizer, data, setting)
    best = source.details["seeds"].index(source.details["best_seed"])
    for engine in (*setting.also, ways.FIRST):  # the first comes last, so that its predictions are the record's
        loaded, files = ways.quantize(engine, float_file, context.folder, rows)
        found = ways.describe(engine, float_file, context.folder, loaded, rows, setting.length)
        metrics, details = evaluate(loaded, tokenizer, data, setting, context.folder, OnnxModel.ROWS)
        changes = {f"{name}_change": value - source.samples[name][best] for name, value in metrics.items()}
        sizes = {"bytes_before": float(found.bytes_before), "bytes_after": float(found.bytes_after)}
        details["statuses"] = [status(setting.task, source, metrics, details)]
        details["change"] = change(setting.task, context.folder / "predictions.parquet", folder.parent / "predictions.parquet")
        context.quantizations[engine] = found
        context.artefacts += files
        if engine == ways.FIRST:
            context.quantization = found
            context.metrics |= {**sizes, **metrics, **changes}
            context.details |= details
        else:
            context.metrics |= {f"{engine}:{name}": value for name, value in {**sizes, **metrics, **changes}.items()}
            context.details[engine] = details
    for name in metrics:
        context.samples[f"float_{name}"] = [source.samples[name][best]]
    context.artefacts += [name for name in source.artefacts if name.startswith("predictions")]
    context.label([], tuned)


def calibration(tokenizer, data: Path, setting: TaskConfig) -> list[dict[str, np.ndarray]]:
    """Return batches of one training row each, at most CALIBRATION_ROWS, without padding."""
    task = TASKS[setting.task]
    frame = sample(pd.read_parquet(table_file(data, task.name, "train")), CALIBRATION_ROWS, seed=0)
    if task.is_squad:
        examples, _ = encode_squad(tokenizer, frame, setting, training=False)
    else:
        examples = encode(tokenizer, task.name, frame, setting.length)
    count = min(len(examples), CALIBRATION_ROWS)  # a question may have several windows
    return [examples.batch(np.array([row]), multiple=1) for row in range(count)]


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
