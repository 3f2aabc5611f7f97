"""Runs trained as a stack against the same runs alone: weights, curves, ends, kills."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from family import SMALL

from mobilebert import MobileBertConfig, MobileBertForQuestionAnswering, MobileBertForSequenceClassification
from mobilebert.data.features import Examples
from mobilebert.data.glue import TASKS
from mobilebert.jobs import Job
from mobilebert.records import Run
from mobilebert.training import together
from mobilebert.training.finetuning import BagOfEmbeddings, finetune, make_task
from mobilebert.training.together import Member

torch.set_num_threads(1)
SETTING = {
    "recipe": "paper", "precision": "fp32", "warmup_share": 0.1, "weight_decay": 0.01, "batch_size": 4, "epochs": 2,
    "learning_rate": 0.01,
}  # fmt: skip
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def rows(task_name: str, count: int = 22) -> Examples:
    """Rows of 3 to 16 tokens, the longest a whole number of eights, and a last batch that is short."""
    rng, task = np.random.default_rng(0), TASKS[task_name]
    lengths = rng.integers(3, 17, count)
    lengths[:3] = 16, 8, 8
    ids = [rng.integers(1, 50, size).astype(np.int32) for size in lengths]
    types = [(np.arange(size) > size // 2).astype(np.int8) for size in lengths]
    if task.is_squad:
        targets = {f"{end}_positions": np.array([rng.integers(0, size) for size in lengths]) for end in ("start", "end")}
    elif task.is_regression:
        targets = {"labels": rng.uniform(0, 5, count).astype(np.float32)}
    else:
        targets = {"labels": rng.integers(0, task.num_labels, count)}
    return Examples(ids, types, 0, targets)


def ours(task_name: str, **fields):
    task = TASKS[task_name]
    kind = MobileBertForQuestionAnswering if task.is_squad else MobileBertForSequenceClassification
    return kind(MobileBertConfig(**{**SMALL, **DROPOUT, "classifier_dropout": 0.1, "num_labels": task.num_labels, **fields}))


def bert(task_name: str):
    task = TASKS[task_name]
    kind = transformers.BertForQuestionAnswering if task.is_squad else transformers.BertForSequenceClassification
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    return kind(transformers.BertConfig(**sizes, max_position_embeddings=16, num_labels=task.num_labels))


def bag(task_name: str):
    return BagOfEmbeddings(50, 8, TASKS[task_name].num_labels)


def new_run(folder: Path) -> Run:
    run = Run(Job("finetune", "toy/cola", {}, (), "a" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


def new_models(make, task_name, seeds):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(make(task_name).train())
        with torch.no_grad():
            for parameter in found[-1].parameters():  # biases and padding rows start at zero, and pre-training moves them
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def alone(folder, make, task_name, seeds, rates, **changes):
    setting, run = {**SETTING, "task": task_name, **changes}, new_run(folder)
    models = new_models(make, task_name, seeds)
    for index, (model, seed, rate) in enumerate(zip(models, seeds, rates, strict=True)):
        finetune(run, rows(task_name), model, {**setting, "learning_rate": rate}, seed, "cpu", f"run{index}")
    return run, models


def stacked(folder, make, task_name, seeds, rates, watch=lambda members, stack: None, **changes):
    setting, run = {**SETTING, "task": task_name, **changes}, new_run(folder)
    models = new_models(make, task_name, seeds)
    members = [
        Member(f"run{index}", make_task(rows(task_name), model, setting, seed), rate)
        for index, (model, seed, rate) in enumerate(zip(models, seeds, rates, strict=True))
    ]
    stack = together.stack_of(models, members, "cpu")
    watch(members, stack)
    together.train(run, stack, members, task_name, setting["weight_decay"], "cpu")
    for index, model in enumerate(models):
        stack.copy_to(model, index)
    return run, models, stack, members


# Of a softmax over positions: what is added to all of its inputs has no gradient but rounding noise, of which Adam makes steps.
SHIFTS = (
    "qa_outputs.bias",
    "layer.1.output.LayerNorm.bias",
    "layer.1.output.bottleneck.LayerNorm.bias",
    "layer.1.output.bottleneck.dense.bias",
)


def agree(found, wanted, task_name):
    """Every weight, to 1e-5 of the largest number of its tensor."""
    for mine, theirs in zip(found, wanted, strict=True):
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            if not (TASKS[task_name].is_squad and name.endswith(SHIFTS)):
                assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@pytest.mark.parametrize("task_name", ["cola", "stsb", "squad_v1.1"])
@pytest.mark.parametrize("make", [ours, bert, bag])
def test_runs_of_a_search_are_the_runs_alone(tmp_path, make, task_name):
    """One seed, so one order of rows and one draw of dropout; three rates."""
    if make is bag and task_name == "squad_v1.1":
        pytest.skip("a bag has no order, so no span")
    seeds, rates = [5, 5, 5], [0.001, 0.002, 0.0005]
    _, models, *_ = stacked(tmp_path / "stack", make, task_name, seeds, rates)
    _, wanted = alone(tmp_path / "alone", make, task_name, seeds, rates)
    agree(models, wanted, task_name)


@pytest.mark.parametrize("task_name", ["cola", "stsb", "squad_v1.1"])
def test_seeds_are_the_runs_alone(tmp_path, task_name):
    """Each its own rows, lengths, short batch and dropout."""
    seeds, rates = [0, 1, 2], [0.001, 0.002, 0.0005]
    _, models, *_ = stacked(tmp_path / "stack", ours, task_name, seeds, rates)
    _, wanted = alone(tmp_path / "alone", ours, task_name, seeds, rates)
    agree(models, wanted, task_name)
