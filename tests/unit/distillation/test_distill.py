"""The loss of pre-training distillation and AKT against whole forward passes and NumPy.

The models have three layers.
"""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from transfer_models import model

from mobilebert.distillation.objective import distillation_loss, schedule_labels, teacher_guide
from mobilebert.distillation.transfer import Transfer
from mobilebert.study.graph import build_graph
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import DistillConfig, LayerwiseConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def student():
    return model(1, intra_bottleneck_size=8, num_feedforward_networks=2, classifier_activation=False)


@pytest.fixture(scope="module")
def teacher():
    return model(2, intra_bottleneck_size=12, num_feedforward_networks=1, normalization_type="layer_norm").requires_grad_(False)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return {
        "input_ids": torch.randint(1, 31, (2, 6), generator=generator),
        "token_type_ids": torch.randint(2, (2, 6), generator=generator),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "masked_positions": torch.tensor([1, 4, 8]),
        "masked_labels": torch.tensor([5, 17, 30]),
        "next_sentence_label": torch.tensor([1, 0]),
    }


def config(recipe="paper", alpha=0.3, temperature=1.0):
    return DistillConfig.model_construct(recipe=recipe, alpha=alpha, temperature=temperature)


def transfer(student, teacher, recipe, chosen=("fmt", "at")):
    config = LayerwiseConfig.model_construct(strategy="akt", recipe=recipe, losses=chosen, factors=None, steps=9)
    return Transfer(student, teacher, config)


def loss(student, teacher, batch, config, transfer):
    return distillation_loss(student, teacher_guide(teacher, batch, config, transfer), batch, config, transfer)


def forward(model, batch):
    """Return masked-LM logits of all positions (B, T, V) and NSP logits (B, 2), in float64."""
    with torch.no_grad():
        out = model(**{key: batch[key] for key in ("input_ids", "token_type_ids", "attention_mask")})
    return (x.numpy().astype(np.float64) for x in (out.prediction_logits, out.seq_relationship_logits))


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_loss_is_hard_and_soft_labels_and_nsp(student, teacher, batch, recipe):
    logits, nsp = forward(student, batch)
    guide, _ = forward(teacher, batch)
    logs, guide = (log_softmax(x.reshape(12, 31)[[1, 4, 8]], -1) for x in (logits, guide))
    hard = -logs[range(3), [5, 17, 30]].mean()
    soft = (np.exp(guide) * ((guide if recipe == "paper" else 0) - logs)).sum(-1).mean()
    following = -log_softmax(nsp, -1)[range(2), [1, 0]].mean()
    found = {key: value.item() for key, value in loss(student, teacher, batch, config(recipe), None).items()}
    assert found == pytest.approx(
        {"loss": 0.3 * hard + 0.7 * soft + following, "mlm": hard, "kd": soft, "nsp": following}, rel=1e-5
    )


def test_temperature_scales_the_input_of_the_teachers_head(student, teacher, batch):
    """It does not multiply the logits: the head's LayerNorm takes most of the factor away again."""
    with torch.no_grad():
        states = teacher.mobilebert(**{key: batch[key] for key in ("input_ids", "token_type_ids", "attention_mask")})
        logits = teacher.cls.predictions(2.5 * states.last_hidden_state).flatten(0, 1)[[1, 4, 8]].double().numpy()
    mine = forward(student, batch).__next__().reshape(12, 31)[[1, 4, 8]]
    expected = -(softmax(logits, -1) * log_softmax(mine, -1)).sum(-1).mean()
    found = loss(student, teacher, batch, config("released", temperature=2.5), None)["kd"].item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found - loss(student, teacher, batch, config("released"), None)["kd"].item()) > 1e-3


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_auxiliary_transfer_adds_the_joint_loss(student, teacher, batch, recipe):
    layers = transfer(student, teacher, recipe)
    alone, both = loss(student, teacher, batch, config(recipe), None), loss(student, teacher, batch, config(recipe), layers)
    joint = layers.loss(batch, 0)["loss"]
    assert both["layers"].item() == pytest.approx(joint.item(), rel=1e-6)
    assert both["loss"].item() == pytest.approx((alone["loss"] + joint).item(), rel=1e-6)


@pytest.mark.parametrize("auxiliary", [None, ("fmt",), ("fmt", "at")])
def test_the_teacher_runs_once_without_autograd_and_returns_only_maps_that_are_compared(student, teacher, batch, auxiliary):
    seen, rows = [], []
    hooks = [
        block.register_forward_hook(lambda module, args, out: seen.append((torch.is_grad_enabled(), out[1] is not None)))
        for block in teacher.mobilebert.encoder.layer
    ]
    hooks.append(teacher.cls.predictions.register_forward_hook(lambda module, args, out: rows.append(out.shape)))
    hooks.append(teacher.cls.seq_relationship.register_forward_hook(lambda module, args, out: rows.append("nsp")))
    layers = transfer(student, teacher, "paper", auxiliary) if auxiliary else None
    loss(student, teacher, batch, config(), layers)
    for hook in hooks:
        hook.remove()
    assert seen == [(False, bool(auxiliary) and "at" in auxiliary)] * 3
    assert rows == [(3, 31)]  # logits of the masked positions alone


def test_micro_batches_add_up_to_the_whole_batch(student, teacher, batch):
    total = {}
    for row, masked in ((0, slice(0, 2)), (1, slice(2, 3))):
        part = {key: value[row : row + 1] for key, value in batch.items() if not key.startswith("masked_")}
        part["masked_positions"] = batch["masked_positions"][masked] - 6 * row
        part["masked_labels"] = batch["masked_labels"][masked]
        part["masked_weight"] = torch.tensor(len(part["masked_labels"]) / 3 * 2)
        part["token_weight"] = part["attention_mask"].sum() / 10 * 2
        for key, value in loss(student, teacher, part, config(), transfer(student, teacher, "paper")).items():
            total[key] = total.get(key, 0) + value.item() / 2
    whole = loss(student, teacher, batch, config(), transfer(student, teacher, "paper"))
    assert total == pytest.approx({key: value.item() for key, value in whole.items()}, rel=1e-5)


def test_auxiliary_transfer_with_fewer_steps_is_labelled_scaled():
    """Distillation has the paper's 500k steps, transfer beside it 1k of the paper's 240k."""
    study = Study(schema=1, description="the paper", transfer={"steps": 1000})
    graph = build_graph(study)
    labels = [schedule_labels(study, graph[f"distill/mobilebert-{name}"].settings(DistillConfig)) for name in ("akt", "pd")]
    assert labels == [["scaled: transfer sees 4.2e-03 of the paper's tokens"], []]
