"""Compare our transfer stage and distillation step with plain PyTorch's (plain.py).

Verdicts are ratios within one run, of processor seconds on one thread.
"""

import plain
import pytest
import torch

LAYERS, BATCH, LENGTH, MASKED, ROUNDS = 12, 8, 64, 77, 9
WIDTHS = {
    "num_hidden_layers": LAYERS,
    "embedding_size": 32,
    "hidden_size": 128,
    "intermediate_size": 128,
    "vocab_size": 4000,
    "max_position_embeddings": LENGTH,
}


def models():
    from mobilebert import MobileBertConfig, MobileBertForPreTraining

    torch.manual_seed(0)
    narrow = {"intra_bottleneck_size": 32, "classifier_activation": False}
    wide = {
        "intra_bottleneck_size": 256,
        "num_feedforward_networks": 1,
        "key_query_shared_bottleneck": False,
        "normalization_type": "layer_norm",
        "hidden_act": "gelu",
    }
    student, teacher = (MobileBertForPreTraining(MobileBertConfig(**WIDTHS, **fields)).eval() for fields in (narrow, wide))
    return student, teacher.requires_grad_(False)


def batch():
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(5, 4000, (BATCH, LENGTH), generator=generator),
        "token_type_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
        "masked_positions": torch.randperm(BATCH * LENGTH, generator=generator)[:MASKED].sort().values,
        "masked_labels": torch.randint(5, 4000, (MASKED,), generator=generator),
        "next_sentence_label": torch.randint(2, (BATCH,), generator=generator),
    }


@pytest.fixture(scope="module")
def steps():
    """Return name -> (ours, plain), each a function that returns the loss of one step."""
    from mobilebert.distillation.objective import distillation_loss, teacher_guide
    from mobilebert.distillation.transfer import Transfer, layer_of
    from mobilebert.study.stage_config import DistillConfig, LayerwiseConfig
    from mobilebert.training import optim

    torch.set_num_threads(1)
    student, teacher = models()
    reference, data = models()[0], batch()
    settings = {
        "strategy": "pkt",
        "recipe": "paper",
        "losses": ("fmt", "at"),
        "factors": None,
        "lower_layers": 0.1,
        "steps": LAYERS,
    }
    transfer = Transfer(student, teacher, LayerwiseConfig.model_construct(**settings))
    prepare = transfer.prepare(optim.make(student, "lamb", 1e-3, 0.01, group=layer_of))

    def stage(layer):
        def ours():
            prepare(layer)
            return transfer.loss(data, layer)["loss"]

        return ours, lambda: plain.transfer(reference, teacher, data, layer)

    config = DistillConfig.model_construct(recipe="paper", alpha=0.5, temperature=1.0)

    def distillation():
        student.requires_grad_(True)
        return distillation_loss(student, teacher_guide(teacher, data, config, None), data, config, None)["loss"]

    found = {f"stage of layer {layer + 1}": stage(layer) for layer in (0, LAYERS // 2 - 1, LAYERS - 1)}
    found["distillation"] = distillation, lambda: plain.distillation(reference, teacher, data)
    return found, (student, reference)


@pytest.mark.parametrize(
    ("name", "least"),
    [("stage of layer 1", 5.0), ("stage of layer 6", 1.6), ("stage of layer 12", 1.1), ("distillation", 1.1)],
)
def test_faster_than_plain(rounds, steps, name, least):
    versions, students = steps

    def step(loss):
        def run(_):
            for student in students:
                student.zero_grad(set_to_none=True)
            found = loss()
            found.backward()
            return found.item()

        return run

    samples, losses = rounds.run(
        {which: step(loss) for which, loss in zip(("ours", "plain"), versions[name], strict=True)}, ROUNDS
    )
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-4)  # the same work
    rounds.judge(samples, "plain", "ours", least)
