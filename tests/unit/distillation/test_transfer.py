"""Knowledge transfer: what comes from the teacher, what learns at which rate, and resume."""

import copy

import pytest
import torch
from transfer_models import LAYERS, STEPS, STUDENT, TEACHER, batch, config, expected_loss, model

from mobilebert.distillation.transfer import Transfer, copy_outside_encoder, layer_of, shuffle_weights
from mobilebert.jobs.context import JobContext
from mobilebert.study.job import Job
from mobilebert.training import optim
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan

torch.set_num_threads(1)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def outside(model):
    return {name for name, _ in model.named_parameters() if ".encoder." not in name}


def test_everything_outside_the_encoder_is_copied_but_a_norm_of_another_kind(student, teacher):
    before, source = weights(student), weights(teacher)
    copied = copy_outside_encoder(student, teacher)
    norm = {"mobilebert.embeddings.LayerNorm.weight", "mobilebert.embeddings.LayerNorm.bias"}
    assert not any("pooler" in name for name in copied)  # the student has none, whatever the teacher has
    assert any("pooler" in name for name in source)
    assert len(copied) == len(set(copied))
    assert set(copied) == outside(student) - norm
    assert {"cls.predictions.transform.LayerNorm.weight", "cls.seq_relationship.weight"} <= set(copied)
    after = weights(student)
    assert changed(before, after) == set(copied)
    assert all(torch.equal(after[name], source[name]) for name in copied)
    assert student.cls.predictions.decoder.weight is student.mobilebert.embeddings.word_embeddings.weight


def test_norm_and_pooler_are_copied_between_models_that_have_the_same(teacher):
    alike = model(3, **STUDENT | {"normalization_type": "layer_norm", "classifier_activation": True})
    assert set(copy_outside_encoder(alike, teacher)) == outside(alike) == outside(teacher)


def test_layer_of():
    assert layer_of("mobilebert.encoder.layer.0.attention.self.query.weight") == 0
    assert layer_of("mobilebert.encoder.layer.23.output.LayerNorm.bias") == 23
    for name in ("mobilebert.embeddings.word_embeddings.weight", "cls.predictions.bias", "mobilebert.pooler.dense.bias"):
        assert layer_of(name) == -1


def test_shuffled_weights_are_the_same_values_in_another_order(teacher):
    mine, again, other = (copy.deepcopy(teacher) for _ in range(3))
    for shuffled, seed in ((mine, 7), (again, 7), (other, 8)):
        shuffle_weights(shuffled, seed)
    for (name, before), a, b, c in zip(teacher.named_parameters(), mine.parameters(), again.parameters(), other.parameters()):
        assert a.shape == before.shape
        assert torch.equal(a.flatten().sort().values, before.flatten().sort().values), name
        assert torch.equal(a, b)
        if before.numel() > 30:
            assert not torch.equal(a, before), name
            assert not torch.equal(a, c), name


def rates(student, transfer, step, kind="lamb"):
    optimizer = optim.make(student, kind, 0.1, 0.01, group=layer_of)
    transfer.prepare(optimizer)(step)
    return {id(p): group["rate"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("lower", [0.1, 0.0])
def test_progressive_transfer_teaches_one_layer_after_the_other(student, teacher, lower):
    transfer = Transfer(student, teacher, config(lower_layers=lower))
    for step in range(STEPS):
        taught = step // 10  # 30 steps over three layers
        found = rates(student, transfer, step)
        for name, parameter in student.named_parameters():
            layer = layer_of(name)
            expected = 1.0 if layer == taught else lower if 0 <= layer < taught else 0.0
            assert found[id(parameter)] == expected, (step, name)
            assert parameter.requires_grad == (expected > 0), (step, name)


def test_joint_transfer_teaches_every_layer_and_nothing_else(student, teacher):
    transfer = Transfer(student, teacher, config("jkt"))
    for step in (0, 17, STEPS - 1):
        found = rates(student, transfer, step)
        for name, parameter in student.named_parameters():
            assert found[id(parameter)] == (1.0 if layer_of(name) >= 0 else 0.0)
            assert parameter.requires_grad == (layer_of(name) >= 0)


def one_step(student, teacher, step, kind="adamw", **fields):
    """Return how far each parameter moved in one step of the optimizer."""
    student = copy.deepcopy(student)
    transfer = Transfer(student, teacher, config(**fields))
    optimizer = optim.make(student, kind, 0.01, 0.01, group=layer_of)
    before = weights(student)
    transfer.prepare(optimizer)(step)
    transfer.loss(batch(step), step)["loss"].backward()
    optimizer.step()
    return {name: value - before[name] for name, value in weights(student).items()}


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
@pytest.mark.parametrize("step", [0, 12, 29])
def test_a_step_moves_its_layer_and_the_lower_ones_by_a_tenth(student, teacher, step, kind):
    taught = step // 10
    slow, full = (one_step(student, teacher, step, kind, lower_layers=rate) for rate in (0.1, 1.0))
    frozen = one_step(student, teacher, step, kind, lower_layers=0.0)
    for name, moved in slow.items():
        layer = layer_of(name)
        if layer < 0 or layer > taught:
            assert (moved == 0).all(), name
            continue
        share = 1.0 if layer == taught else 0.1
        torch.testing.assert_close(moved, share * full[name], rtol=1e-3, atol=1e-6)
        assert (frozen[name] == moved).all() if layer == taught else (frozen[name] == 0).all(), name
    for layer in range(taught + 1):
        matrices = [full[name] for name in full if layer_of(name) == layer and name.endswith("weight")]
        assert all(moved.abs().max() > 1e-4 for moved in matrices)


def test_a_joint_step_moves_the_encoder_alone(student, teacher):
    moved = {name for name, value in one_step(student, teacher, 0, strategy="jkt").items() if value.abs().max() > 1e-4}
    expected = {name for name in moved if layer_of(name) >= 0}
    assert moved == expected
    assert {layer_of(name) for name in moved} == {0, 1, 2}


def test_rate_follows_the_curve_of_each_stage(student, teacher):
    """Ten steps a stage: first the peak (released: three times it), at the end 0.9 of it."""
    fall = [1.0] + [1 - 0.1 * (within / 9) ** 0.5 for within in range(9)]
    for recipe, peak in (("paper", 1.0), ("released", 3.0)):
        transfer = Transfer(student, teacher, config(recipe=recipe))
        assert [transfer.rate(step) for step in range(STEPS)] == pytest.approx([peak * x for x in fall] * LAYERS)
    joint = Transfer(student, teacher, config("jkt"))
    assert [joint.rate(step) for step in (0, 4, 5, 29)] == pytest.approx([0.2, 1.0, 1.0, 1 / 25])


def test_learning_rates_of_the_released_stages_at_full_scale():
    """Released recipe: 240,000 steps over 24 layers at 0.0015; three times that at the peak of a
    stage; a tenth of it for lower layers."""
    small = {"num_hidden_layers": 24, "hidden_size": 8, "embedding_size": 4, "intra_bottleneck_size": 4}
    student, teacher = model(1, **STUDENT | small), model(2, **TEACHER | small)
    transfer = Transfer(student, teacher, config(recipe="released").model_copy(update={"steps": 240_000}))
    optimizer = optim.make(student, "lamb", 0.0015, 0.01, group=layer_of)
    prepare, groups = transfer.prepare(optimizer), {}
    for group in optimizer.param_groups:
        names = [name for name, p in student.named_parameters() if any(p is member for member in group["params"])]
        groups.setdefault(layer_of(names[0]), []).append(group)
    curve = {0: 0.001, 499: 0.5, 999: 1.0, 1000: 1.0, 3250: 0.95, 9999: 0.9}
    for stage in (0, 1, 11, 23):
        for within, height in curve.items():
            step = 10_000 * stage + within
            prepare(step)
            for layer, found in groups.items():
                share = 1.0 if layer == stage else 0.1 if 0 <= layer < stage else 0.0
                for group in found:
                    rate = 0.0015 * transfer.rate(step) * group["rate"]
                    assert rate == pytest.approx(3 * 0.0015 * height * share, rel=1e-5)
    assert set(groups) == {-1, *range(24)}


def transferred(folder, teacher, last=None, recipe="paper"):
    """Run 30 steps of progressive transfer, or raise an error at step `last`."""
    student = model(1, **STUDENT)
    copy_outside_encoder(student, teacher)
    transfer = Transfer(student, teacher, config(recipe=recipe))
    optimizer = optim.make(student, "lamb", 0.05, 0.01, group=layer_of)

    def batch_at(step):
        if step == last:
            raise KeyboardInterrupt
        return batch(0)

    task = TrainingPlan(STEPS, batch_at, transfer.loss, transfer.rate, 0, transfer.prepare(optimizer), checkpoint_every=7)
    run = JobContext(Job("transfer", "toy", {}, (), "f" * 64), "study", folder, {})
    run.state.mkdir(parents=True, exist_ok=True)
    train(run, student, optimizer, task)
    return run, student


def test_transfer_brings_the_student_nearer_and_resumes_in_any_stage(tmp_path, teacher):
    whole, expected = transferred(tmp_path / "whole", teacher)
    fresh = model(1, **STUDENT)
    copy_outside_encoder(fresh, teacher)
    for layer in range(LAYERS):
        distance = [expected_loss(who, teacher, batch(), layer, "paper", ("fmt",)) for who in (expected, fresh)]
        assert distance[0] < 0.9 * distance[1], layer
    for last in (5, 9, 16, 29):  # before any state; then in stages 0, 1 and 2, after a state of this stage or the last
        with pytest.raises(KeyboardInterrupt):
            transferred(tmp_path / "broken", teacher, last)
    run, found = transferred(tmp_path / "broken", teacher)
    assert not changed(weights(expected), weights(found))
    assert run.curves == whole.curves
    assert {name for name in changed(weights(fresh), weights(found)) if layer_of(name) < 0} == set()
