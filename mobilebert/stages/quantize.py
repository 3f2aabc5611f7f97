"""int8 (paper section 4.6.3): export the fine-tuned model to ONNX, quantize it, score it again with the same code."""

from __future__ import annotations

from mobilebert.config import Study
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.int8 import describe
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.evaluation.scoring import evaluate
from mobilebert.records import Record, Run
from mobilebert.training.finetuning import new_model
from mobilebert.training.pretraining import weights_folder
from mobilebert.training.runs import failure


def run(run: Run, study: Study) -> None:
    setting = run.job.config
    tuned = f"finetune/{run.job.name}"
    data = run.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    folder = weights_folder(run, tuned)
    source = run.record_of(tuned)
    model = new_model(setting["task"], source.config["architecture"], folder).eval()
    float_file, int8_file = run.state / "model.onnx", run.folder / "model.int8.onnx"
    export_onnx(model, float_file, length=setting["length"])
    run.metrics |= {key: float(value) for key, value in quantize_int8(float_file, int8_file).items()}
    run.quantization = describe(float_file, int8_file, setting["length"])
    tokenizer = load_tokenizer(data / "tokenizer")
    metrics, details = evaluate(OnnxModel(int8_file), tokenizer, data, setting, run.folder, OnnxModel.ROWS)
    run.metrics |= metrics
    best = source.details["seeds"].index(source.details["best_seed"])
    run.details |= {**details, "statuses": [status(setting["task"], source, metrics, details)]}
    for name, value in metrics.items():
        run.samples[f"float_{name}"] = [source.samples[name][best]]
        run.metrics[f"{name}_change"] = value - source.samples[name][best]
    run.artefacts += ["model.int8.onnx", *(name for name in source.artefacts if name.startswith("predictions"))]
    run.label([], tuned)


def status(task: str, source: Record, metrics: dict, details: dict) -> str:
    """`failed` where the int8 model is no better than guessing, or its float model, the best of the seeds, had not learnt."""
    best = source.details["statuses"][source.details["seeds"].index(source.details["best_seed"])]
    shares = details["shares"].get("validation", [])
    reason = failure(task, source.metrics | metrics, details["rows"]["validation"], shares, [])
    return "failed" if reason or best == "failed" else "ok"
