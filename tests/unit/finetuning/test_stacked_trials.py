"""Trials trained as a stack against the same trials alone: weights, ends, resume."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from family import SMALL

from mobilebert import MobileBertConfig, MobileBertForQuestionAnswering, MobileBertForSequenceClassification
from mobilebert.data.examples import Examples
from mobilebert.finetuning.stacked import train as together
from mobilebert.finetuning.stacked.train import Member
from mobilebert.finetuning.task import BagOfEmbeddings, finetune, make_plan
from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import Diverged, UserError

torch.set_num_threads(1)
SETTING = {
    "recipe": "paper", "precision": "fp32", "warmup_share": 0.1, "weight_decay": 0.01, "batch_size": 4, "epochs": 2,
    "learning_rate": 0.01, "architecture": {"model_type": "auto"},
}  # fmt: skip
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def rows(task_name: str, count: int = 22) -> Examples:
    """Return rows of 3 to 16 tokens, the longest a multiple of eight; the last batch is short."""
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


def new_run(folder: Path) -> JobContext:
    run = JobContext(Job("finetune", "toy/cola", {}, (), "a" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


class Stop(Exception):
    pass


def stop_at(batch, last):
    def stopped(step):
        if step == last:
            raise Stop
        return batch(step)

    return stopped


def new_models(make, task_name, seeds):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(make(task_name).train())
        with torch.no_grad():
            for parameter in found[-1].parameters():  # biases and padding rows start at zero, but pre-training moves them
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def alone(folder, make, task_name, seeds, rates, **changes):
    setting, run = FinetuneConfig.model_construct(**{**SETTING, "task": task_name, **changes}), new_run(folder)
    models = new_models(make, task_name, seeds)
    for index, (model, seed, rate) in enumerate(zip(models, seeds, rates, strict=True)):
        finetune(run, rows(task_name), model, setting.model_copy(update={"learning_rate": rate}), seed, "cpu", f"run{index}")
    return run, models


def stacked(folder, make, task_name, seeds, rates, stop=None, every=500, **changes):
    setting, run = FinetuneConfig.model_construct(**{**SETTING, "task": task_name, **changes}), new_run(folder)
    models = new_models(make, task_name, seeds)
    members = [
        Member(f"run{index}", make_plan(rows(task_name), model, setting, seed), rate)
        for index, (model, seed, rate) in enumerate(zip(models, seeds, rates, strict=True))
    ]
    stack = together.stack_of(models, members, task_name, "cpu")
    for member in members:
        member.task.checkpoint_every = every
        if stop is not None:
            member.task.batch = stop_at(member.task.batch, stop)
    together.train(run, stack, members, task_name, setting.weight_decay, "cpu")
    for index, model in enumerate(models):
        stack.copy_to(model, index)
    return run, models, stack, members


# A softmax over positions ignores a shift of all its inputs: the gradient of a shift is rounding
# noise, which Adam turns into steps.
SHIFTS = (
    "qa_outputs.bias",
    "layer.1.output.LayerNorm.bias",
    "layer.1.output.bottleneck.LayerNorm.bias",
    "layer.1.output.bottleneck.dense.bias",
)


def agree(found, wanted, task_name):
    """Compare every weight to 1e-5 of the largest number of its tensor."""
    for mine, theirs in zip(found, wanted, strict=True):
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            if not (TASKS[task_name].is_squad and name.endswith(SHIFTS)):
                assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@pytest.mark.parametrize("task_name", ["cola", "stsb", "squad_v1.1"])
@pytest.mark.parametrize("make", [ours, bert, bag])
def test_trials_of_one_seed_learn_the_same_as_alone(tmp_path, make, task_name):
    """One seed gives one order of rows and one draw of dropout, at three rates."""
    if make is bag and task_name == "squad_v1.1":
        pytest.skip("a bag has no order, so no span")
    seeds, rates = [5, 5, 5], [0.001, 0.002, 0.0005]
    run, models, *_ = stacked(tmp_path / "stack", make, task_name, seeds, rates)
    whole, wanted = alone(tmp_path / "alone", make, task_name, seeds, rates)
    agree(models, wanted, task_name)
    assert run.curves.keys() == whole.curves.keys() == {"run0_loss", "run1_loss", "run2_loss"}
    for name, curve in whole.curves.items():
        assert [step for step, _ in run.curves[name]] == [step for step, _ in curve] == list(range(12))
        assert [value for _, value in run.curves[name]] == pytest.approx([value for _, value in curve], rel=1e-4)
    assert run.details.keys() == whole.details.keys()


@pytest.mark.parametrize("task_name", ["cola", "stsb", "squad_v1.1"])
def test_trials_of_several_seeds_learn_the_same_as_alone(tmp_path, task_name):
    """Each seed has other rows, lengths, short batches and dropout."""
    seeds, rates = [0, 1, 2], [0.001, 0.002, 0.0005]
    _, models, *_ = stacked(tmp_path / "stack", ours, task_name, seeds, rates)
    _, wanted = alone(tmp_path / "alone", ours, task_name, seeds, rates)
    agree(models, wanted, task_name)


def test_dropout_is_drawn_as_alone(tmp_path):
    """Dropout matters above: a trial without one of its dropouts ends elsewhere."""
    _, (model, _), *_ = stacked(tmp_path / "stack", ours, "cola", [5, 5], [0.001, 0.002])
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        _, wanted = alone(tmp_path / name, lambda task, name=name: ours(task, **{name: 0.0}), "cola", [5], [0.001])
        with pytest.raises(AssertionError):
            agree([model], wanted, "cola")


def test_bfloat16_agrees_to_its_rounding(tmp_path):
    run, *_ = stacked(tmp_path / "stack", ours, "cola", [5, 6], [0.001, 0.002], precision="bf16")
    whole, _ = alone(tmp_path / "alone", ours, "cola", [5, 6], [0.001, 0.002], precision="bf16")
    full, _ = alone(tmp_path / "fp32", ours, "cola", [5, 6], [0.001, 0.002])
    for name, curve in whole.curves.items():
        assert run.curves[name] != full.curves[name]
        assert [value for _, value in run.curves[name]] == pytest.approx([value for _, value in curve], abs=0.05)


@pytest.mark.parametrize("seeds", [[5, 5, 5], [0, 1, 2]])
def test_a_trial_that_diverges_does_not_change_the_others(tmp_path, seeds):
    """A rate of 1e30 ends a trial at its second step, with the same message as alone."""
    run, models, stack, members = stacked(tmp_path / "stack", ours, "cola", seeds, [0.001, 1e30, 0.002])
    _, wanted = alone(tmp_path / "alone", ours, "cola", seeds[::2], [0.001, 0.002])
    agree(models[::2], wanted, "cola")
    assert [together.reason(stack, members, index) is None for index in range(3)] == [True, False, True]
    with pytest.raises(Diverged) as error:
        alone(tmp_path / "diverged", ours, "cola", seeds[1:2], [1e30])
    assert re.search(r"at step \d+ of 12, batch \w{12};", str(error.value))[0] in together.reason(stack, members, 1)
    assert all(parameter.isfinite().all() for parameter in models[1].parameters())
    step = int(stack.ended[1, 0])
    assert [place for place, _ in run.curves["run1_loss"]] == list(range(step))
    assert len(run.curves["run0_loss"]) == len(run.curves["run2_loss"]) == 12
    assert {"run0_steps", "run2_steps"} <= run.details.keys()
    assert "run1_steps" not in run.details


def test_a_stack_whose_trials_all_diverged_ends(tmp_path):
    run, _, stack, members = stacked(tmp_path, ours, "cola", [5, 5], [1e30, 1e31])
    assert all(together.reason(stack, members, index) for index in range(2))
    assert max(step for step, _ in run.curves["run0_loss"]) < 3


@pytest.mark.parametrize(("stop", "rates"), [(5, [0.001, 0.002]), (0, [1e30, 0.002]), (11, [1e30, 0.002])])
def test_a_resumed_stack_gives_the_same_weights(tmp_path, stop, rates):
    whole, wanted, *_ = stacked(tmp_path / "whole", ours, "cola", [0, 1], rates, every=4)
    with pytest.raises(Stop):
        stacked(tmp_path / "broken", ours, "cola", [0, 1], rates, every=4, stop=stop)
    run, models, stack, members = stacked(tmp_path / "broken", ours, "cola", [0, 1], rates, every=4)
    for mine, theirs in zip(models, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert run.curves == whole.curves
    assert (together.reason(stack, members, 0) is None) == (rates[0] < 1)
    again, *_ = stacked(tmp_path / "broken", ours, "cola", [0, 1], rates, every=4, stop=0)  # no step runs twice
    assert again.curves == whole.curves


def test_a_damaged_or_foreign_state_is_refused(tmp_path):
    run, *_ = stacked(tmp_path, ours, "cola", [0, 1], [0.001, 0.002])
    (path,) = run.state.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"stack-\w+\.safetensors: damaged state"):
        stacked(tmp_path, ours, "cola", [0, 1], [0.001, 0.002])
    path.with_name(f"{together.key_of(['run0', 'run1', 'run2'])}.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="state of another run"):
        stacked(tmp_path, ours, "cola", [0, 1, 2], [0.001, 0.002, 0.001])


def test_a_model_with_data_dependent_control_flow_is_not_stacked():
    """Nor is another family's model if each trial has a batch of its own. An error of the model
    itself is raised, not taken for that."""

    class Looks(BagOfEmbeddings):
        def forward(self, input_ids, attention_mask, token_type_ids=None):
            found = super().forward(input_ids, attention_mask, token_type_ids)
            return found if found["logits"].sum() > 0 else {"logits": -found["logits"]}

    def members(models, seeds):
        setting = FinetuneConfig.model_construct(**SETTING, task="cola")
        return [
            Member(str(seed), make_plan(rows("cola"), model, setting, seed), 0.1)
            for model, seed in zip(models, seeds, strict=True)
        ]

    models = new_models(lambda task: Looks(50, 8, 2), "cola", [0, 1])
    for seeds in ([0, 0], [0, 1]):
        assert together.stack_of(models, members(models, seeds), "cola", "cpu") is None
    models = new_models(bert, "cola", [0, 1])
    assert together.stack_of(models, members(models, [0, 1]), "cola", "cpu") is None
    assert together.stack_of(models, members(models, [0, 0]), "cola", "cpu") is not None
    calls = iter([None, RuntimeError("of the model")])

    def broken(*_):
        if error := next(calls):
            raise error

    models[0].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="of the model"):
        together.stack_of(models, members(models, [0, 0]), "cola", "cpu")


def test_a_weight_that_gets_no_gradient_stays_as_it_is(tmp_path):
    """Nobody reads this bottleneck: AdamW with a gradient of zeros would let it decay."""
    layout = {"use_bottleneck_attention": True, "key_query_shared_bottleneck": True}
    _, models, stack, _ = stacked(tmp_path / "stack", lambda task: ours(task, **layout), "cola", [0, 1], [0.001, 0.002])
    before = new_models(lambda task: ours(task, **layout), "cola", [0, 1])
    name = "mobilebert.encoder.layer.0.bottleneck.attention.dense.weight"
    assert name not in stack.shapes
    for model, first in zip(models, before, strict=True):
        assert torch.equal(model.get_parameter(name), first.get_parameter(name))
