"""Quantize a fine-tuned model to int8 (paper section 4.6.3).

The model is exported to ONNX, quantized in one or more ways, and scored again with the same code.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import pandas as pd
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from mobilebert.claims.effects import paired
from mobilebert.compare.interval import quantile
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.deployment import ways
from mobilebert.deployment.engines.table import ENGINES, Loaded
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.layer_errors import BROKEN
from mobilebert.deployment.quantize import OnnxModel
from mobilebert.evaluation.scoring import evaluate, training_rows
from mobilebert.finetuning.aware import train_aware
from mobilebert.finetuning.outcomes import failure
from mobilebert.finetuning.task import forward_of, new_model
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.record import Quantization, Record
from mobilebert.pretraining.objective import weights_folder
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import FinetuneConfig, QuantizeConfig
from mobilebert.study.tasks import TASKS
from mobilebert.training.device import device_of
from mobilebert.util.errors import UserError

logger = logging.getLogger(__name__)

CALIBRATION_ROWS = 64
CHECKED_ROWS = 4  # on which the float32 file must compute what the model does


def main(context: JobContext, study: Study) -> None:
    """Write the int8 models, their scores and the change of each from the float model's.

    Metrics of ONNX Runtime's dynamic quantization have their plain names, as in Table 6. Another
    way's metrics begin with its name and a colon.
    """
    setting, tuned = context.settings(QuantizeConfig), f"finetune/{context.job.name}"
    architecture = context.graph[tuned].settings(FinetuneConfig).architecture
    for way in setting.also:
        ways.check(way, architecture)
    data = context.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    folder = weights_folder(context, tuned)
    record = context.record_of(tuned)
    model = cast(PreTrainedModel, new_model(setting.task, architecture, folder).eval())
    tokenizer = load_tokenizer(data / "tokenizer")
    check_tokens(tuned, tokenizer, model)
    source = prepare(context, model, folder, training_rows(tokenizer, data, setting, CALIBRATION_ROWS))
    if ways.AWARE in setting.also:
        learner, seen = train_aware(context, tuned, model, tokenizer, data, device_of(study))
        source = replace(source, aware=learner, aware_rows=seen)
    for way in (*setting.also, ways.FIRST):  # FIRST is last: its predictions are the record's
        loaded, files = ways.quantize(way, source, context.folder)
        found = ways.describe(way, source, context.folder, loaded)
        warn(context.job.id, way, found)
        prefix = "" if way == ways.FIRST else f"{way}:"
        context.quantization = context.quantizations[way] = found
        context.metrics |= {f"{prefix}{key}": float(getattr(found, key)) for key in ("bytes_before", "bytes_after")}
        trained = score_trained(context, source, loaded, tokenizer, data) if way == ways.AWARE else {}
        metrics, details = evaluate(loaded, tokenizer, data, setting, context.folder, OnnxModel.ROWS)
        details["statuses"] = [status(setting.task, record, metrics, details)]
        details["change"] = change(setting.task, context.folder / "predictions.parquet", folder.parent / "predictions.parquet")
        if trained:
            details |= trained | {"fake_quantized_agreement": agreement(context.folder, context.state)}
        context.details |= details if way == ways.FIRST else {way: details}
        context.artefacts += files
        best = record.details["seeds"].index(record.details["best_seed"])
        for name, value in metrics.items():
            context.samples[f"float_{name}"] = [record.samples[name][best]]
            context.metrics |= {f"{prefix}{name}": value, f"{prefix}{name}_change": value - record.samples[name][best]}
    context.artefacts += [name for name in record.artefacts if name.startswith("predictions")]
    context.label([], tuned)


def prepare(context: JobContext, model: PreTrainedModel, folder: Path, rows: list) -> ways.Source:
    """Return what the ways read: the model, and its float32 ONNX file in the saved state.

    Raises UserError without rows, and if the file does not compute what the model does.
    """
    setting = context.settings(QuantizeConfig)
    if not rows:
        raise UserError(f"{context.job.id}: the training split of {setting.task} has no rows to calibrate on")
    source = ways.Source(model, folder, context.state / "model.onnx", rows, setting.length)
    export_onnx(model, source.file, length=setting.length)
    ways.check_file(OnnxModel(source.file), forward_of(model, "cpu"), rows[:CHECKED_ROWS], source.file, ways.FLOAT_EXPORT)
    return source


def check_tokens(tuned: str, tokenizer: Tokenizer, model: PreTrainedModel) -> None:
    """Raise UserError if the tokenizer has tokens that the model does not know."""
    tokens, known = tokenizer.get_vocab_size(), model.config.vocab_size
    if tokens > known:
        raise UserError(f"{tuned}: the tokenizer has {tokens} entries, the model {known}; run data and {tuned} again")


def warn(job: str, way: str, found: Quantization) -> None:
    """Name the layers that the quantization broke, on stderr."""
    if found.broken_layers:
        layers = ", ".join(f"{layer} ({found.layer_errors[layer]:.2f})" for layer in found.broken_layers)
        logger.warning("%s: %s: layers whose output is off by more than %g of float32's: %s", job, way, BROKEN, layers)


def score_trained(context: JobContext, source: ways.Source, loaded: Loaded, tokenizer: Tokenizer, data: Path) -> dict:
    """Return the scores of the model with fake quantization, and the error of its int8 file.

    Its predictions go to the saved state. Raises UserError if the file holds another model.
    """
    reference = forward_of(source.aware, "cpu")
    path, most = context.folder / ways.FILES[ways.AWARE], ENGINES[ways.FIRST].tolerance
    error = ways.check_file(loaded, reference, source.rows, path, most)
    scores, _ = evaluate(reference, tokenizer, data, context.settings(QuantizeConfig), context.state)
    return {"export_error": error, "fake_quantized": scores}


def agreement(folder: Path, other: Path) -> float:
    """Return the share of rows with equal predictions in the predictions of two folders."""
    mine, theirs = (pd.read_parquet(one / "predictions.parquet")["prediction"].to_numpy() for one in (folder, other))
    return int(sum(mine == theirs)) / len(mine)


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
