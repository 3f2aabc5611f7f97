"""One teacher pass for students with different losses gives each the bits that it gets alone."""

from collections import Counter

import pytest
import torch
import transfer_models

from mobilebert.distillation.shared_teacher import train_together
from mobilebert.distillation.teacher_layers import Guide
from mobilebert.distillation.transfer import Transfer, layer_of
from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.study.stage_config import LayerwiseConfig
from mobilebert.training import optim
from mobilebert.training.plan import TrainingPlan

torch.set_num_threads(1)
LAYERS, STEPS = transfer_models.LAYERS, 9
SIZES = {"max_position_embeddings": 16, "classifier_activation": False}
WIDE = {"intra_bottleneck_size": 12, "num_feedforward_networks": 1, "key_query_shared_bottleneck": False}
LOSSES = {"a": ("fmt", "at"), "b": ("fmt",), "c": ("at",), "d": ("fmt", "at")}


def model(seed, **fields):
    return transfer_models.model(seed, **SIZES, **fields)


@pytest.fixture
def teacher():
    return model(0, **WIDE, normalization_type="layer_norm").requires_grad_(False)


@pytest.fixture
def blocks(teacher):
    """Return a counter of how often each block of the teacher ran."""
    runs = Counter()
    for index, block in enumerate(teacher.mobilebert.encoder.layer):
        block.register_forward_hook(lambda module, args, out, index=index: runs.update([index]))
    return runs


def batch(step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, 31, (4, 12), generator=generator)
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": (torch.arange(12) < 9).expand(4, 12) * 1}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_only_the_taught_block_runs_twice_for_losses_with_and_without_maps(teacher, blocks, depth):
    taught = range(depth - 1, depth)
    guide = Guide(teacher, batch(0), depth, taught, "paper")
    both = {maps: guide.layers(maps, False) for maps in (True, False, True)}
    assert blocks == Counter({**dict.fromkeys(range(depth - 1), 1), depth - 1: 2})
    for maps, found in both.items():
        own = Guide(teacher, batch(0), depth, taught, "paper").layers(maps, False)[depth - 1]
        assert torch.equal(found[depth - 1]["features"], own["features"])
        assert (own["attention"] is not None) == maps
    states = teacher.mobilebert(**batch(0), output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(both[True][depth - 1]["features"], states.hidden_states[depth])
    torch.testing.assert_close(both[True][depth - 1]["attention"], states.attentions[depth - 1])
    torch.testing.assert_close(both[False][depth - 1]["features"], states.hidden_states[depth])


def test_the_teacher_runs_to_its_end_only_for_losses_that_average_all_layers(teacher, blocks):
    guide = Guide(teacher, batch(0), 2, range(1, 2), "released")
    assert "statistics" not in guide.layers(True, False)[1]
    assert blocks == Counter({0: 1, 1: 1})
    means, variances = guide.layers(True, True)[1]["statistics"]
    assert blocks == Counter({0: 1, 1: 2, 2: 1})
    states = torch.stack(teacher.mobilebert(**batch(0), output_hidden_states=True).hidden_states)
    torch.testing.assert_close(means, states.mean(-1))
    torch.testing.assert_close(variances, states.var(-1, unbiased=False))


def learnt(folder, teacher, names, strategy, recipe):
    """Return the weights of the students after training; the first one leads the others."""
    models = {}
    runs = [JobContext(Job("transfer", name, {}, (), name * 64), "study", folder, {}) for name in names]

    def prepare(run, shared):
        run.state.mkdir(parents=True, exist_ok=True)
        name = run.job.name
        student = models[name] = model(ord(name), intra_bottleneck_size=8, num_feedforward_networks=2)
        setting = {"strategy": strategy, "recipe": recipe, "losses": LOSSES[name], "factors": None, "lower_layers": 0.1}
        transfer = Transfer(student, teacher, LayerwiseConfig(**setting, steps=STEPS, warmup_steps=1))
        optimizer = optim.make(student, "adamw", 0.01, 0.0, group=layer_of)
        task = TrainingPlan(
            steps=STEPS,
            batch=batch,
            loss=lambda batch, step: transfer.loss(batch, step, lambda make: shared.get(run.job.id, step, make)),
            rate=transfer.rate,
            seed=0,
            prepare=transfer.prepare(optimizer),
            accumulate=2,
        )
        return student, optimizer, task

    train_together(runs[0], runs[1:], prepare, "cpu")
    return {name: {key: value.detach().clone() for key, value in found.named_parameters()} for name, found in models.items()}


@pytest.mark.parametrize(("strategy", "recipe"), [("pkt", "paper"), ("pkt", "released"), ("jkt", "paper")])
def test_students_of_several_losses_learn_what_they_learn_alone(teacher, blocks, tmp_path, strategy, recipe):
    alone = {name: learnt(tmp_path / name, teacher, name, strategy, recipe)[name] for name in LOSSES}
    apart = blocks.total()
    together = learnt(tmp_path / "together", teacher, "bacd", strategy, recipe)
    for name, weights in together.items():
        assert all(torch.equal(value, alone[name][key]) for key, value in weights.items()), name
    if (strategy, recipe) == (
        "pkt",
        "paper",
    ):  # 3 stages of 3 steps of 2 micro-batches: the taught block twice
        assert blocks.total() - apart == 3 * 2 * (2 + 3 + 4)
        assert apart == 4 * 3 * 2 * (1 + 2 + 3)
    else:
        assert blocks.total() - apart < apart
