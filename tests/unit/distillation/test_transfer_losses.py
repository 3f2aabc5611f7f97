"""The loss of each stage of knowledge transfer, and how deep it runs."""

import weakref

import numpy as np
import pytest
import torch
from transfer_models import LAYERS, STUDENT, batch, config, expected_loss, model

from mobilebert.distillation.losses import FACTORS
from mobilebert.distillation.teacher_layers import Guide
from mobilebert.distillation.transfer import Transfer, layer_of
from mobilebert.training import optim
from mobilebert.util.errors import UserError

torch.set_num_threads(1)


@pytest.mark.parametrize("chosen", [("fmt", "at"), ("fmt",), ("at",)])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_stages_loss_equals_that_of_its_layer_in_whole_forwards(student, teacher, recipe, chosen):
    layers = []
    for layer in range(LAYERS):
        transfer = Transfer(student, teacher, config(recipe=recipe, chosen=chosen))
        layers.append(expected_loss(student, teacher, batch(layer), layer, recipe, chosen))
        share = 1 / LAYERS if recipe == "released" else 1  # the released code divides by all layers, although one learns
        assert transfer.loss(batch(layer), layer * 10)["loss"].item() == pytest.approx(share * layers[-1], rel=1e-4)
    assert len(set(layers)) == LAYERS


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_joint_loss_is_the_mean_over_layers(student, teacher, recipe):
    transfer, chosen = Transfer(student, teacher, config("jkt", recipe)), ("fmt", "at")
    expected = np.mean([expected_loss(student, teacher, batch(), layer, recipe, chosen) for layer in range(LAYERS)])
    assert transfer.loss(batch(), 3)["loss"].item() == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def calls(student, teacher):
    """Return a list with an entry for every block that runs. An entry is ("student" or "teacher",
    block, whether its attention map was returned, autograd on)."""
    found = []
    hooks = [
        block.register_forward_hook(lambda *a, w=who, i=index: found.append((w, i, a[2][1] is not None, torch.is_grad_enabled())))
        for who, whole in (("student", student), ("teacher", teacher))
        for index, block in enumerate(whole.mobilebert.encoder.layer)
    ]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("chosen", [("fmt", "at"), ("fmt",)])
@pytest.mark.parametrize(("recipe", "deep"), [("paper", 2), ("released", 3)])
def test_a_stage_runs_no_deeper_than_it_needs(student, teacher, calls, recipe, deep, chosen):
    """Each block runs once; only the taught layer returns its attention map. The released loss
    averages over all layers, so it needs the whole teacher."""
    Transfer(student, teacher, config(recipe=recipe, chosen=chosen)).loss(batch(), 10)
    mapped = 1 if "at" in chosen else None
    assert calls == [
        *(("teacher", index, index == mapped, False) for index in range(deep)),
        *(("student", index, index == mapped, True) for index in range(2)),
    ]


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_stage_keeps_one_hidden_state_of_the_teacher(student, teacher, recipe):
    transfer, born = Transfer(student, teacher, config(recipe=recipe)), []
    hooks = [
        module.register_forward_hook(lambda module, args, out: born.append(weakref.ref(out if torch.is_tensor(out) else out[0])))
        for module in (teacher.mobilebert.embeddings, *teacher.mobilebert.encoder.layer)
    ]

    def alive():
        return sum(state() is not None for state in born)

    for step in (0, 10, 20):
        depth, taught = transfer.depth(step)
        guide = Guide(teacher, batch(), depth, taught, recipe).layers(True, transfer.averages_all_layers)
        assert len(born) == 1 + (LAYERS if recipe == "released" else depth)
        assert alive() == 1
        assert set(guide) == set(taught)
        assert not guide[depth - 1]["features"].requires_grad
        assert guide[depth - 1]["attention"].shape == (2, 2, 6, 6)
        del guide
        assert alive() == 0
        born.clear()
    assert all(len(block._forward_hooks) == 1 for block in teacher.mobilebert.encoder.layer)  # the hook of this test
    for hook in hooks:
        hook.remove()


def test_frozen_lower_layers_keep_nothing_for_the_backward_pass(student, teacher):
    """Autograd begins at the taught layer."""
    for lower, begins in ((0.0, 2), (0.1, 0)):
        transfer = Transfer(student, teacher, config(lower_layers=lower))
        transfer.prepare(optim.make(student, "lamb", 0.1, 0.01, group=layer_of))(20)
        entered = []
        hooks = [
            block.register_forward_hook(lambda module, args, out, found=entered: found.append(out[0].requires_grad))
            for block in student.mobilebert.encoder.layer
        ]
        transfer.loss(batch(), 20)
        for hook in hooks:
            hook.remove()
        assert entered == [index >= begins for index in range(LAYERS)]


def test_micro_batches_add_up_to_the_whole_batch(student, teacher):
    """Means over real tokens take their micro-batch's weight; released means take none."""
    whole = batch()
    for recipe in ("paper", "released"):
        transfer, total = Transfer(student, teacher, config(recipe=recipe)), 0.0
        for row in range(2):
            part = {key: value[row : row + 1] for key, value in whole.items()}
            part["token_weight"] = part["attention_mask"].sum() / whole["attention_mask"].sum() * 2
            total += transfer.loss(part, 10)["loss"].item() / 2
        assert total == pytest.approx(transfer.loss(whole, 10)["loss"].item(), rel=1e-5)


def test_factors_are_the_recipes_unless_given(student, teacher):
    assert Transfer(student, teacher, config(recipe="released")).factors == FACTORS["released"]
    transfer = Transfer(student, teacher, config(chosen=("fmt",), factors=[4.0, 0.0, 0.0, 1.0]))
    expected = 4 * expected_loss(student, teacher, batch(), 0, "paper", ("fmt",))
    assert transfer.loss(batch(), 0)["loss"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("num_hidden_layers", {"num_hidden_layers": LAYERS + 1}),
        ("num_hidden_layers", {"num_hidden_layers": LAYERS - 1}),
        ("hidden_size", {"hidden_size": 12}),
        ("vocab_size", {"vocab_size": 40}),
        ("num_attention_heads", {"num_attention_heads": 4}),
        ("num_attention_heads", {"num_attention_heads": 1}),
    ],
    ids=["deeper", "shallower", "narrower", "other vocabulary", "more heads", "one head"],
)
def test_models_that_cannot_be_compared_are_refused(teacher, field, fields):
    with pytest.raises(UserError, match=field) as caught:
        Transfer(model(4, **STUDENT | fields), teacher, config())
    assert str(next(iter(fields.values()))) in str(caught.value)


def test_heads_may_differ_where_no_attention_is_compared(teacher):
    Transfer(model(4, **STUDENT | {"num_attention_heads": 4}), teacher, config(chosen=("fmt",)))
