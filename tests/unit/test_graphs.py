"""Steps from recorded graphs: on the CPU a recorder stands in for CUDA, which repeats the same operations on the same memory."""

import pytest
import torch
from recording import Recorder

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, layer_of
from mobilebert.jobs import Job
from mobilebert.records import Run
from mobilebert.stages import distill
from mobilebert.training import graphs, optim, pretraining
from mobilebert.training.graphs import WARM_UP
from mobilebert.training.loop import Task, train

torch.set_num_threads(1)
LENGTH, ROWS, LAYERS = 12, 4, 2
SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 12,
    "max_position_embeddings": LENGTH,
}
STUDENT = {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2}
TEACHER = {"embedding_size": 8, "intra_bottleneck_size": 12, "num_feedforward_networks": 1, "normalization_type": "layer_norm"}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
STEPS = 24
KINDS = ["pretrain", "dropout", "bert", "pkt", "frozen", "jkt", "distill", "released", "akt"]


def batch(step):
    """Rows of 12 tokens, padded but at each third step, with 1 to 3 masked tokens each."""
    generator = torch.Generator().manual_seed(step)
    real = torch.randint(5, LENGTH, (ROWS,), generator=generator) if step % 3 else torch.full((ROWS,), LENGTH)
    ids = torch.randint(1, 31, (ROWS, LENGTH), generator=generator)
    chosen = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    for row, count in enumerate(torch.randint(1, 4, (ROWS,), generator=generator).tolist()):
        chosen[row, 1 : 1 + count] = True
    positions = chosen.flatten().nonzero().flatten()
    found = {
        "input_ids": ids,
        "token_type_ids": torch.randint(2, (ROWS, LENGTH), generator=generator),
        "attention_mask": (torch.arange(LENGTH) < real[:, None]).long(),
        "masked_positions": positions,
        "masked_labels": ids.flatten()[positions],
        "next_sentence_label": torch.randint(2, (ROWS,), generator=generator),
    }
    if found["attention_mask"].all():
        del found["attention_mask"]
    return found


def model(seed, **fields):
    torch.manual_seed(seed)
    return MobileBertForPreTraining(MobileBertConfig(**SIZES | fields)).eval()


def workload(kind, optimizer="lamb", device="cpu", dtype=torch.float32, **changes):
    """A student, its optimizer and its task."""
    options = {"recipe": "released" if kind == "released" else "paper", "alpha": 0.3, "temperature": 1.0}
    transfer = {"losses": ("fmt", "at"), "factors": None, "steps": STEPS, "warmup_steps": 2, "recipe": options["recipe"]}
    group, more = (lambda name: None), {}
    if kind == "bert":
        torch.manual_seed(1)
        student = pretraining.new_model({"model_type": "bert", **SIZES}).eval().to(device, dtype)
    else:
        student = model(1, **STUDENT, **(DROPOUT if kind == "dropout" else {})).to(device, dtype).train(kind == "dropout")
    if kind in ("pretrain", "dropout", "bert"):
        more["loss"] = lambda batch, step: pretraining.loss(student, batch)
    else:
        teacher = model(2, **TEACHER).to(device, dtype).requires_grad_(False)
        copy_outside_encoder(student, teacher)
    if kind in ("pkt", "frozen", "jkt"):
        strategy = {"strategy": "jkt" if kind == "jkt" else "pkt", "lower_layers": 0.0 if kind == "frozen" else 0.1}
        lesson, group = Transfer(student, teacher, transfer | strategy), layer_of
        more = {"loss": lesson.loss, "rate": lesson.rate, "stage": lesson.depth}
    elif kind in ("distill", "released", "akt"):
        lesson = Transfer(student, teacher, transfer | {"strategy": "akt"}) if kind == "akt" else None
        more["loss"] = lambda batch, step: distill.loss(
            student, distill.guide(teacher, batch, options, lesson), batch, options, lesson
        )
    made = optim.make(student, optimizer, 0.02, 0.01, group=group)
    if "stage" in more:
        more["prepare"] = lesson.prepare(made)
    task = {
        "steps": STEPS,
        "batch": batch,
        "rate": lambda step: 1 / (1 + step),
        "seed": 3,
        "checkpoint_every": 5,
        "predictions": 3,
    }
    return student, made, Task(**task | more | changes)


def run_in(folder):
    run = Run(Job("pretrain", "toy", {}, (), "f" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


def trained(folder, kind, optimizer="lamb", device="cpu", **changes):
    """The run, the student's weights and those it began with."""
    student, made, task = workload(kind, optimizer, device, **changes)
    before, run = weights(student), run_in(folder)
    train(run, student, made, task, device=device)
    return run, weights(student), before


def weights(model):
    return torch.cat([parameter.detach().flatten().double().cpu() for parameter in model.parameters()])


def agree(found, expected):
    """Runs that end alike, having learnt something, and point for point in their curves."""
    (run, after, before), (whole, other, _) = found, expected
    assert (other - before).norm() > 0.1 * before.norm()
    assert (after - other).norm() < 1e-9 * other.norm()
    assert run.curves.keys() == whole.curves.keys()
    for key, points in whole.curves.items():
        assert [step for step, _ in run.curves[key]] == [step for step, _ in points]
        assert [value for _, value in run.curves[key]] == pytest.approx([value for _, value in points], rel=1e-5)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(graphs, "Capture", Recorder)
    monkeypatch.setattr(Recorder, "log", [])
    return Recorder


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_learn_what_steps_do(tmp_path, recorder, kind, optimizer):
    """In float64: an update divides by what may be rounding alone, so that toys in float32 drift apart within some steps."""
    wide = {"optimizer": optimizer, "dtype": torch.float64}
    agree(trained(tmp_path / "graphs", kind, graph=True, **wide), trained(tmp_path / "steps", kind, **wide))
    stages = LAYERS if kind in ("pkt", "frozen") else 1
    assert recorder.log.count("record") == 2 * 2 * stages  # gradients and update, with a mask and without one
    assert recorder.log.count("warm") == 2 * 2 * stages * WARM_UP
    assert recorder.log.count("warm") + recorder.log.count("replay") == 2 * STEPS
