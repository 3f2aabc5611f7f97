"""Train small models of every kind, with and without recorded graphs."""

import pytest
import torch

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.distillation.objective import distillation_loss, teacher_guide
from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, layer_of
from mobilebert.jobs.context import JobContext
from mobilebert.pretraining import objective
from mobilebert.study.job import Job
from mobilebert.study.stage_config import DistillConfig, LayerwiseConfig
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan

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
STEPS = 20
KINDS = {
    "pretrain": "lamb",
    "dropout": "adamw",
    "bert": "lamb",
    "pkt": "lamb",
    "frozen": "adamw",
    "jkt": "lamb",
    "distill": "lamb",
    "released": "adamw",
    "akt": "adamw",
}


def batch(step):
    """Return rows of 12 tokens, padded at every other step, with 1 to 3 masked tokens each."""
    generator = torch.Generator().manual_seed(step)
    real = torch.randint(5, LENGTH, (ROWS,), generator=generator) if step % 2 else torch.full((ROWS,), LENGTH)
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


def stopped(steps):
    """Return batches that raise KeyboardInterrupt at the first of `steps`, then at the next."""

    def batch_at(step):
        if step in steps[:1]:
            del steps[0]
            raise KeyboardInterrupt
        return batch(step)

    return batch_at


def model(seed, **fields):
    torch.manual_seed(seed)
    return MobileBertForPreTraining(MobileBertConfig(**SIZES | fields)).eval()


def workload(kind, optimizer="lamb", device="cpu", dtype=torch.float32, **changes):
    """Return a student, its optimizer and its task."""
    recipe = "released" if kind == "released" else "paper"
    options = DistillConfig.model_construct(recipe=recipe, alpha=0.3, temperature=1.0)
    lessons = {"losses": ("fmt", "at"), "factors": None, "steps": STEPS, "warmup_steps": 2, "recipe": recipe}
    group, more = (lambda name: None), {}
    if kind == "bert":
        torch.manual_seed(1)
        student = objective.new_model({"model_type": "bert", **SIZES}).eval().to(device, dtype)
    else:
        student = model(1, **STUDENT, **(DROPOUT if kind == "dropout" else {})).to(device, dtype).train(kind == "dropout")
    if kind in ("pretrain", "dropout", "bert"):
        more["loss"] = lambda batch, step: objective.loss(student, batch)
    else:
        teacher = model(2, **TEACHER).to(device, dtype).requires_grad_(False)
        copy_outside_encoder(student, teacher)
    if kind in ("pkt", "frozen", "jkt"):
        strategy = {"strategy": "jkt" if kind == "jkt" else "pkt", "lower_layers": 0.0 if kind == "frozen" else 0.1}
        lesson, group = Transfer(student, teacher, LayerwiseConfig(**lessons | strategy)), layer_of
        more = {"loss": lesson.loss, "rate": lesson.rate, "stage": lesson.stage}
    elif kind in ("distill", "released", "akt"):
        lesson = Transfer(student, teacher, LayerwiseConfig.model_construct(**lessons, strategy="akt")) if kind == "akt" else None
        more["loss"] = lambda batch, step: distillation_loss(
            student, teacher_guide(teacher, batch, options, lesson), batch, options, lesson
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
    return student, made, TrainingPlan(**task | more | changes)


def run_in(folder):
    run = JobContext(Job("pretrain", "toy", {}, (), "f" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    return run


def trained(folder, kind, optimizer="lamb", device="cpu", **changes):
    """Return the job's context, the student's weights and those it began with."""
    student, made, task = workload(kind, optimizer, device, **changes)
    before, run = weights(student), run_in(folder)
    train(run, student, made, task, device=device)
    return run, weights(student), before


def weights(model):
    return torch.cat([parameter.detach().flatten().double().cpu() for parameter in model.parameters()])


def agree(found, expected, tolerance=1e-9):
    """Check that both trainings learnt something and have equal weights and equal curves."""
    (run, after, before), (whole, other, _) = found, expected
    assert (other - before).norm() > 0.1 * before.norm()
    assert (after - other).norm() < tolerance * other.norm()
    assert run.curves.keys() == whole.curves.keys()
    for key, points in whole.curves.items():
        (steps, values), (others, expected) = zip(*run.curves[key], strict=True), zip(*points, strict=True)
        assert steps == others
        assert values == pytest.approx(expected, rel=max(1e-5, 10 * tolerance))
