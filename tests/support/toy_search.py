"""Search the settings of a bag of embeddings on 36 toy rows."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mobilebert.data.examples import Examples
from mobilebert.evaluation.glue import score, share
from mobilebert.finetuning.task import BagOfEmbeddings, finetune, forward_of
from mobilebert.finetuning.trials import collect, run_all_trials
from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.study.stage_config import FinetuneConfig

TASK = {
    "task": "cola", "recipe": "paper", "precision": "fp32", "warmup_share": 0.1, "weight_decay": 0.01, "seeds": [0, 1],
    "search": "quick", "halving": True, "batch_size": 4, "learning_rate": 0.02, "epochs": 4,
    "length": 16, "train_rows": None, "eval_rows": None,
    "architecture": {"model_type": "bag-of-embeddings"},
}  # fmt: skip
SETTING = FinetuneConfig.model_construct(**TASK)


class Rows:
    """36 rows that a bag of embeddings learns: the vocabulary's first half is class 0."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        ids = [rng.integers(2, 12, 6).astype(np.int32) for _ in range(36)]
        labels = np.array([row[0] > 6 for row in ids], np.int64)
        ids = [np.where(row[0] > 6, row % 5 + 7, row % 5 + 2).astype(np.int32) for row in ids]
        self.examples = Examples(ids, [np.zeros(6, np.int8)] * 36, 0, {"labels": labels})


def new_run(folder: Path) -> JobContext:
    run = JobContext(Job("finetune", "toy/cola", TASK, (), "a" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def train(part, trial, out, stop=lambda: None):
    rows = Rows(0).examples
    torch.manual_seed(trial.seed)
    model = BagOfEmbeddings(12, 8, 2).train()
    seen = rows if trial.part == 1 else rows.part(36 // trial.part)
    model.register_forward_pre_hook(lambda *_: stop())
    finetune(part, seen, model, SETTING.model_copy(update=trial.setting), trial.seed, "cpu", trial.name)
    return scores(model, out)


def scores(model, out):
    test = Rows(1).examples
    batch = test.batch(np.arange(36))
    predicted = forward_of(model, "cpu")(batch)["logits"].argmax(-1)
    (out / "predictions.txt").write_text(" ".join(map(str, predicted)))
    labels = test.targets["labels"]
    return score("cola", predicted, labels), {"rows": {"validation": 36}, "shares": {"validation": share(predicted, 2)}}


def whole_job(folder, train=train):
    run = new_run(folder)
    collect(run, run_all_trials(run, train), "matthews_correlation")
    return run


def lasting(run):
    """Return the output of a job that must not depend on kills: everything but times."""
    speed = ("_per_second", "_data_wait_share", "_first_step_seconds")
    lines = [json.loads(line) for line in (run.folder / "runs.jsonl").read_text().splitlines()]
    for line in lines:
        del line["started"], line["seconds"]
        line["training"] = {key: value for key, value in line["training"].items() if not key.endswith(speed)}
    details = {key: value for key, value in run.details.items() if not key.endswith(speed)}
    return lines, run.metrics, run.samples, run.curves, details


class Stop(Exception):
    pass


def kill_after_the_first_trial(program: str, folder: Path) -> float:
    """Run a program, kill it soon after its first trial; return how many seconds after."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # pytest's: it has tests/support
    process = subprocess.Popen([sys.executable, program, str(folder)], stderr=subprocess.PIPE, env=environment)
    try:
        while process.poll() is None and not list(folder.rglob("runs/*.json")):
            time.sleep(0.005)
        moment = random.uniform(0, 0.3)
        time.sleep(moment)
    finally:
        process.kill()
        error = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, error
    return moment
