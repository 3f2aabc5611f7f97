"""The FLOPs behind a training's MFU, against products counted by hand and PyTorch's own count."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertForSequenceClassification
from mobilebert.data.examples import Examples
from mobilebert.distillation.transfer import Transfer, layer_of
from mobilebert.finetuning import task as finetuning
from mobilebert.jobs.context import JobContext
from mobilebert.modeling.cost import cost
from mobilebert.modeling.presets import preset
from mobilebert.pretraining import objective
from mobilebert.stages import transfer as program
from mobilebert.study.budget import transfer_flops_per_token
from mobilebert.study.job import Job
from mobilebert.study.stage_config import FinetuneConfig, TransferConfig
from mobilebert.training import loop, optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan

torch.set_num_threads(1)
LAYERS, STEPS, ROWS, LENGTH = 3, 12, 2, 16
SIZES = {
    "vocab_size": 31,
    "embedding_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
}
STUDENT = {"intra_bottleneck_size": 8, "num_feedforward_networks": 2, "classifier_activation": False}
TEACHER = {
    "intra_bottleneck_size": 16,
    "num_feedforward_networks": 1,
    "key_query_shared_bottleneck": False,
    "normalization_type": "layer_norm",
    "classifier_activation": False,
}


def model(kind, fields):
    torch.manual_seed(0)
    return kind(MobileBertConfig(**SIZES, **fields)).eval()


@pytest.fixture(scope="module")
def student():
    return model(MobileBertForPreTraining, STUDENT)


@pytest.fixture(scope="module")
def teacher():
    return model(MobileBertForPreTraining, TEACHER).requires_grad_(False)


def config(**changes):
    fields = {"strategy": "pkt", "recipe": "paper", "losses": ["fmt", "at"], "factors": None, "lower_layers": 0.1}
    return TransferConfig.model_construct(**{**fields, "steps": STEPS, "warmup_steps": 0, **changes})


def batch(step=0):
    ids = torch.randint(1, 31, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}


def counted(work):
    """Return PyTorch's count; a fused attention would repeat its products in the backward pass."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# Products of a student's block of width 32, 8 inside: query, key 8 x 8, value 32 x 8, output 8 x 8;
# two bottlenecks 32 x 8 and the way out 8 x 32; two FFNs 8 x 12 and back; scores and contexts of 16
# tokens. A teacher's: query, key, value 32 x 16, output 16 x 16; the bottleneck 32 x 16 and the way
# out; one FFN 16 x 12 and back. Both embed three neighbours: 24 x 32.
BLOCK = 3 * 8 * 8 + 32 * 8 + 3 * 32 * 8 + 2 * 2 * 8 * 12 + 2 * 16 * 8
GUIDE = 3 * 32 * 16 + 16 * 16 + 2 * 32 * 16 + 2 * 16 * 12 + 2 * 16 * 16
EMBED = 24 * 32


@pytest.mark.parametrize(
    ("changes", "step", "run", "learn", "guide"),
    [
        ({}, 0, 1, 1, 1),
        ({}, 7, 2, 2, 2),
        ({}, 11, 3, 3, 3),
        ({"lower_layers": 0.0}, 7, 2, 1, 2),
        ({"recipe": "released"}, 0, 1, 1, 3),
        ({"recipe": "released", "losses": ["fmt"]}, 7, 2, 2, 3),
        ({"strategy": "jkt"}, 0, 3, 3, 3),
    ],
)
def test_a_step_of_transfer(student, teacher, changes, step, run, learn, guide):
    """The formula equals a count by hand, and PyTorch's count but for one gradient.

    "A backward pass is two forward passes" also counts the gradient of the input of the lowest
    block that learns, which two bottlenecks and value read. Nothing needs it, so PyTorch does not
    compute it.
    """
    setting = config(**changes)
    found = transfer_flops_per_token(setting, student.config.to_dict(), teacher.config.to_dict(), step, LENGTH)
    assert found == 2 * ((run + 2 * learn) * BLOCK + EMBED + guide * GUIDE + EMBED)
    transfer = Transfer(student, teacher, setting)
    transfer.prepare(optim.make(student, "lamb", 0.1, 0.0, group=layer_of))(step)
    total = counted(lambda: transfer.loss(batch(), step)["loss"].backward())
    assert total == (found - 2 * 3 * 32 * 8) * ROWS * LENGTH


@pytest.mark.parametrize("layer", [1, 12, 24])
def test_a_step_of_the_papers_models(layer):
    """At full size the difference, 3 x 512 x 128, matters in a first stage, not in the last."""
    sizes, (student, teacher) = [], (preset(name) for name in ("mobilebert", "ib-bert-large"))
    for fields in (student, teacher):
        with torch.device("meta"):
            sizes.append(objective.new_model(fields).eval())
    sizes[1].requires_grad_(False)
    setting, step = config(steps=24), layer - 1
    transfer = Transfer(*sizes, setting)
    transfer.prepare(optim.make(sizes[0], "lamb", 0.1, 0.0, group=layer_of))(step)
    ids = torch.ones(1, 128, dtype=torch.long, device="meta")
    total = counted(lambda: transfer.loss({"input_ids": ids}, step)["loss"].backward())
    found = transfer_flops_per_token(setting, student, teacher, step, 128)
    assert total == (found - 2 * 3 * 512 * 128) * 128
    assert found == pytest.approx(total / 128, rel=0.05 if layer == 1 else 0.01)


# --- fine-tuning


def examples(lengths):
    ids = [np.arange(1, length + 1, dtype=np.int64) for length in lengths]
    return Examples(ids, [np.zeros_like(row) for row in ids], 0, {"labels": np.arange(len(ids)) % 2})


def heads(architecture):
    """Return a classifier, its architecture and its head's FLOPs a batch, backward included."""
    if architecture == "bert":
        fields = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")}
        fields |= {"intermediate_size": 12, "max_position_embeddings": 24}
        torch.manual_seed(0)
        found = BertForSequenceClassification(BertConfig(**fields, type_vocab_size=2))
        return found, found.config.to_dict(), 3 * 2 * ROWS * (32 * 32 + 32 * 2)
    found = model(MobileBertForSequenceClassification, STUDENT)
    return found, found.config.to_dict(), 3 * 2 * ROWS * 32 * 2


@pytest.mark.parametrize("architecture", ["mobilebert", "bert"])
@pytest.mark.parametrize("length", [8, 24])
def test_a_step_of_fine_tuning(architecture, length):
    """At the padded length the formula equals PyTorch's count but for the head."""
    found, fields, head = heads(architecture)
    data = {key: torch.from_numpy(value) for key, value in examples([length, 3]).batch(np.arange(ROWS)).items()}
    assert data["input_ids"].shape == (ROWS, length)
    total = counted(lambda: finetuning.loss("rte", found(**finetuning.inputs_of(found, data)), data).backward())
    each = finetuning.flops_per_token(fields)(0, length)
    assert total == each * ROWS * length + head
    if architecture == "mobilebert":
        assert each == 3 * 2 * (LAYERS * (BLOCK + 2 * (length - 16) * 8) + EMBED)


def test_flops_of_a_baseline_are_not_known():
    for kind in ("auto", "bag-of-embeddings"):
        assert finetuning.flops_per_token({"model_type": kind}) is None


# --- in the record


def new_run(folder):
    run = JobContext(Job("finetune", "toy/rte", {}, (), "a" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


def test_padding_counts_in_tokens_and_in_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e9)
    found, fields, _ = heads("mobilebert")
    data = examples([3, 20, 5, 24, 6, 7, 17, 9])
    setting = {"task": "rte", "architecture": fields, "batch_size": ROWS, "epochs": 1, "recipe": "paper", "warmup_share": 0.1}
    setting |= {"learning_rate": 1e-3, "weight_decay": 0.0, "precision": "fp32"}
    run = new_run(tmp_path)
    finetuning.finetune(run, data, found.train(), FinetuneConfig.model_construct(**setting), 0, "cpu", "seed0")
    widths = [data.batch(rows)["input_ids"].shape[1] for rows in data.epoch(ROWS, 0, 0)][1:]  # without the first step
    assert len(set(widths)) > 1
    mean = sum(width * 3 * cost(fields, width).encoder_flops / width for width in widths) / sum(widths)
    assert run.details["seed0_mfu"] == pytest.approx(run.details["seed0_tokens_per_second"] * mean / 1e9)


@pytest.mark.parametrize("strategy", ["pkt", "jkt"])
def test_the_program_counts_its_own_student_and_teacher(student, teacher, monkeypatch, strategy):
    fields = [one.config.to_dict() for one in (student, teacher)]
    optimizer = {"optimizer": "lamb", "learning_rate": 0.1, "weight_decay": 0.0, "beta2": 0.999}
    setting = config(strategy=strategy, architecture=fields[0], seed=0, **optimizer)
    tasks = []
    monkeypatch.setattr(program, "corpus_of", lambda run: None)
    monkeypatch.setattr(program, "device_of", lambda study: "cpu")
    monkeypatch.setattr(program, "teacher_of", lambda run, study, device: teacher)
    monkeypatch.setattr(program, "make_plan", lambda run, *_: TrainingPlan(STEPS, batch, None, None, 0))
    monkeypatch.setattr(program, "jobs_sharing_teacher", lambda run, study: nullcontext([]))
    monkeypatch.setattr(program, "heldout_loss", lambda *_: 0.0)
    monkeypatch.setattr(program.objective, "new_model", lambda architecture: model(MobileBertForPreTraining, STUDENT))
    monkeypatch.setattr(program.objective, "save_model", lambda run, student: None)
    monkeypatch.setattr(program, "train_together", lambda run, others, make, device: tasks.append(make(run, None)[2]) or student)
    job = Job("transfer", "mobilebert", {}, ("data", "pretrain/ib-bert-large"), "a" * 64)
    study = SimpleNamespace(labels=lambda stage: [], schedule_labels=lambda stage: [])
    run = SimpleNamespace(job=job, settings=lambda kind: setting, metrics={}, details={}, label=lambda *_: None)
    program.main(run, study)
    found = [tasks[0].flops_per_token(step, LENGTH) for step in (0, 7, 11)]
    assert found == [transfer_flops_per_token(setting, *fields, step, LENGTH) for step in (0, 7, 11)]
    assert [tasks[0].stage(step) for step in (0, 7, 11)] == ([1, 2, 3] if strategy == "pkt" else [None] * 3)


def test_a_resumed_transfer_reports_the_stages_that_it_measured(student, teacher, tmp_path, monkeypatch):
    """Twelve steps over three layers stop in the third stage; the state has five steps."""
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e9)
    setting = config()
    transfer = Transfer(student, teacher, setting)
    optimizer = optim.make(student, "lamb", 0.001, 0.0, group=layer_of)
    fields = [one.config.to_dict() for one in (student, teacher)]

    def trained(batch_at):
        run = new_run(tmp_path)
        task = TrainingPlan(
            steps=STEPS,
            batch=batch_at,
            loss=transfer.loss,
            rate=transfer.rate,
            seed=0,
            prepare=transfer.prepare(optimizer),
            checkpoint_every=5,
            flops_per_token=partial(transfer_flops_per_token, setting, *fields),
            stage=transfer.stage,
        )
        train(run, student, optimizer, task)
        return run

    def killed(step):
        if step == 9:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        trained(killed)
    stages = trained(batch).details["train_stages"]
    assert [(stage["stage"], stage["steps"]) for stage in stages] == [(2, 3), (3, 4)]
    for stage in stages:
        each = transfer_flops_per_token(setting, *fields, 4 * stage["stage"] - 1, LENGTH)
        assert stage["mfu"] == pytest.approx(stage["tokens_per_second"] * each / 1e9)
        assert 0 <= stage["data_wait_share"] < 1
