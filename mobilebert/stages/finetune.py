"""Fine-tune one model on one task with every seed, score it, and keep the predictions and the best seed's weights."""

from __future__ import annotations

import json
import shutil
import statistics

import pandas as pd
import torch

from mobilebert.config import Study
from mobilebert.data.features import encode, encode_squad, sample
from mobilebert.data.glue import TASKS
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.evaluation.scoring import evaluate
from mobilebert.records import Diverged, Run, write_atomically
from mobilebert.training.device import device_of
from mobilebert.training.finetuning import BagOfEmbeddings, finetune, forward_of, new_model


def run(run: Run, study: Study) -> None:
    setting, device = run.job.config, device_of(study)
    task = TASKS[setting["task"]]
    data = run.artefact_of("data", "tokenizer/tokenizer.json").parents[1]
    file = run.artefact_of("data", f"tasks/{task.name}/train.parquet")
    tokenizer = load_tokenizer(data / "tokenizer")
    whole = pd.read_parquet(file)
    frame = sample(whole, setting["train_rows"], seed=0)
    if task.is_squad:
        examples = encode_squad(tokenizer, frame, setting, training=True)[0]
    else:
        examples = encode(tokenizer, task.name, frame, setting["length"])
    pretrained = [key for key in run.job.inputs if key != "data"]
    folder = run.artefact_of(pretrained[0], "model/model.safetensors").parent if pretrained else None

    run.resume("", 0)  # the curves of seeds that were finished before a kill
    for seed in setting["seeds"]:
        done = run.state / f"seed{seed}.json"
        if done.exists():
            continue  # finished before a kill; its predictions and weights are beside it
        out = run.state / f"seed{seed}"
        out.mkdir(exist_ok=True)
        torch.manual_seed(seed)
        model = new_model(task.name, setting["architecture"], folder).to(device).train()
        try:
            finetune(run, examples, model, setting, seed, device)
            metrics, details = evaluate(forward_of(model, device), tokenizer, data, setting, out)
        except Diverged as error:
            metrics, details = None, {"diverged": str(error)}
        if metrics and not isinstance(model, BagOfEmbeddings):  # nothing reads the baseline's weights
            model.save_pretrained(out / "model")
        write_atomically(done, json.dumps({"metrics": metrics, "details": details}).encode())
    collect(run, setting["seeds"], task.metrics[0])
    run.details["train_rows"] = len(frame)
    run.label(study.labels("finetune"), *pretrained)
    run.label(subset_labels(run, task.name, len(frame), len(whole), setting))


def collect(run: Run, seeds: list[int], headline: str) -> None:
    """Samples of every seed (null where it diverged), their median as the metric; artefacts of the best seed on validation.

    Raises Diverged when every seed did.
    """
    found = {seed: json.loads((run.state / f"seed{seed}.json").read_text(encoding="utf-8")) for seed in seeds}
    ended = [seed for seed in seeds if found[seed]["metrics"]]
    if not ended:
        raise Diverged(f"every seed: {found[seeds[0]]['details']['diverged']}")
    for name in found[ended[0]]["metrics"]:
        run.samples[name] = [found[seed]["metrics"][name] if seed in ended else None for seed in seeds]
        run.metrics[name] = statistics.median(found[seed]["metrics"][name] for seed in ended)
    best = max(ended, key=lambda seed: found[seed]["metrics"][headline])
    run.details |= {**found[best]["details"], "best_seed": best, "seeds": list(seeds)}
    for source in sorted((run.state / f"seed{best}").rglob("*")):
        if source.is_file():
            name = str(source.relative_to(run.state / f"seed{best}"))
            (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, run.folder / name)
            run.artefacts.append(name)


def subset_labels(run: Run, task: str, used: int, whole: int, setting: dict) -> list[str]:
    """What keeps a result from being one on the whole of the task's data."""
    labels = [
        f"subset ({role}): {text}"
        for role, text in run.record_of("data").details["labels"].get(task, {}).items()
        if not role.startswith("test")
    ]
    if used < whole:
        labels.append(f"subset (train): {used:,} of {whole:,} rows drawn at random")
    if setting["eval_rows"] and setting["eval_rows"] == run.details["rows"]["validation"]:
        labels.append(f"subset (validation): {setting['eval_rows']:,} rows drawn at random")
    return labels
