"""Quantize a fine-tuned model to int8 (paper section 4.6.3).

The model is exported to ONNX, quantized in one or more ways, and scored again with the same code.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from mobilebert.claims.effects import paired
from mobilebert.compare.interval import quantile
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.deployment import lite_rt_files, ways
from mobilebert.deployment.engines.table import ENGINES, Loaded
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.layer_errors import BROKEN
from mobilebert.deployment.quantize import OnnxModel
from mobilebert.deployment.quantized_files import AWARE, FILES, FIRST
from mobilebert.deployment.requirements import check_installed, unfit
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
from mobilebert.util.errors import Diverged, UserError

logger = logging.getLogger(__name__)

CALIBRATION_ROWS = 64
CHECKED_ROWS = 4  # on which the float32 file must compute what the model does


def main(context: JobContext, study: Study) -> None:
    """Write the int8 models, their scores and the change of each from the float model's.

    Metrics of ONNX Runtime's dynamic quantization have their plain names, as in Table 6. Another
    way's metrics begin with its name and a colon. A further way that is refused or diverges leaves
    its reason in the details. Raises UserError if one lacks a package.
    """
    setting, tuned = context.settings(QuantizeConfig), f"finetune/{context.job.name}"
    architecture = context.graph[tuned].settings(FinetuneConfig).architecture
    for way in setting.also:
        check_installed(way)
    data = context.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    folder = weights_folder(context, tuned)
    record = context.record_of(tuned)
    model = cast(PreTrainedModel, new_model(setting.task, architecture, folder).eval())
    tokenizer = load_tokenizer(data / "tokenizer")
    check_tokens(tuned, tokenizer, model)
    source = prepare(context, model, folder, training_rows(tokenizer, data, setting, CALIBRATION_ROWS))
    add(context, FIRST, source, tokenizer, data, context.folder)
    for way in setting.also:
        with contained(context, way):
            if reason := unfit(way, architecture):
                raise UserError(reason)
            if way == AWARE:
                learner, seen = train_aware(context, tuned, model, tokenizer, data, device_of(study))
                source = replace(source, aware=learner, aware_rows=seen)
            out = context.state / way
            out.mkdir(exist_ok=True)
            add(context, way, source, tokenizer, data, out)
    context.artefacts += [name for name in record.artefacts if name.startswith("predictions")]
    context.label([], tuned)


def add(context: JobContext, way: str, source: ways.Source, tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Quantize and score in one way, and add to the record all that it found.

    out: the folder for the predictions. If scoring fails, the record still says how the file was
        made.
    """
    setting, tuned = context.settings(QuantizeConfig), f"finetune/{context.job.name}"
    record = context.record_of(tuned)
    loaded, files = ways.quantize(way, source, context.folder)
    found = ways.describe(way, source, context.folder, loaded)
    warn(context.job.id, way, found)
    prefix = "" if way == FIRST else f"{way}:"
    context.quantizations[way] = found
    if way == FIRST:
        context.quantization = found
    context.metrics |= {f"{prefix}{key}": float(getattr(found, key)) for key in ("bytes_before", "bytes_after")}
    metrics, details = evaluate(loaded, tokenizer, data, setting, out, OnnxModel.ROWS)
    details["statuses"] = [status(setting.task, record, metrics, details)]
    float_file = source.checkpoint.parent / "predictions.parquet"
    if way in lite_rt_files.KINDS:
        details["padded_float"], float_file = score_padded(context, way, source, tokenizer, data, float_file)
    details["change"] = change(setting.task, out / "predictions.parquet", float_file)
    if way == AWARE:
        details |= score_trained(context, source, loaded, tokenizer, data, out)
    best = record.details["seeds"].index(record.details["best_seed"])
    floats = {name: record.samples[name][best] for name in metrics}
    context.details |= details if way == FIRST else {way: details}
    context.artefacts += files
    context.samples |= {f"float_{name}": [value] for name, value in floats.items()}
    for name, value in metrics.items():
        context.metrics |= {f"{prefix}{name}": value, f"{prefix}{name}_change": value - floats[name]}


@contextlib.contextmanager
def contained(context: JobContext, way: str) -> Iterator[None]:
    """Keep a way that is refused or diverges from ending the job: its reason goes to the details.

    Its files are deleted. The record forgets them.
    """
    try:
        yield
    except (UserError, Diverged) as error:
        context.details[way] = {"reason": str(error)}
        context.quantizations.pop(way, None)
        for name in [name for name in context.metrics if name.startswith(f"{way}:")]:
            del context.metrics[name]
        logger.warning("%s: %s: not quantized: %s", context.job.id, way, error)
        file = context.folder / FILES[way]
        for path in (file, file.with_suffix(".bin"), file.with_suffix(".json")):
            path.unlink(missing_ok=True)


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
        errors = found.layer_errors
        layers = ", ".join(
            f"{layer} ({errors[layer]:.2f})" if layer in errors else f"{layer} (not finite)" for layer in found.broken_layers
        )
        logger.warning("%s: %s: layers whose output is off by more than %g of float32's: %s", job, way, BROKEN, layers)


def score_trained(
    context: JobContext, source: ways.Source, loaded: Loaded, tokenizer: Tokenizer, data: Path, out: Path
) -> dict[str, Any]:
    """Return the scores of the model with fake quantization, and the error of its int8 file.

    out: the folder with the file's predictions. Raises UserError if the file holds another model.
    """
    setting, reference = context.settings(QuantizeConfig), forward_of(source.aware, "cpu")
    error = ways.check_file(loaded, reference, source.rows, context.folder / FILES[AWARE], ENGINES[FIRST].tolerance)
    scores, _ = evaluate(reference, tokenizer, data, setting, context.state)
    found = {"export_error": error, "fake_quantized": scores}
    if TASKS[setting.task].is_regression:
        return found
    return found | {"fake_quantized_agreement": agreement(out, context.state)}


def score_padded(
    context: JobContext, way: str, source: ways.Source, tokenizer: Tokenizer, data: Path, float_file: Path
) -> tuple[dict[str, Any], Path]:
    """Score the float model on rows padded as the way's file pads them, with the file's mask.

    float_file: predictions of the float model without padding. Return the scores with the change
    that padding alone makes, and the file of the predictions.
    """
    setting, out = context.settings(QuantizeConfig), context.state / f"{way}-float"
    out.mkdir(exist_ok=True)
    model = lite_rt_files.float_model(way, source.model, source.checkpoint)
    forward = lite_rt_files.on_padded(forward_of(model, "cpu"), source.length)
    scores, _ = evaluate(forward, tokenizer, data, setting, out)
    mine = out / "predictions.parquet"
    return {"tokens": source.length, "scores": scores, "change": change(setting.task, mine, float_file)}, mine


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
