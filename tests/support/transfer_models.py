"""Make a student and a teacher of two and three layers."""

import numpy as np
import torch

from mobilebert import MobileBertConfig, MobileBertForPreTraining
from mobilebert.study.stage_config import LayerwiseConfig

LAYERS, STEPS = 3, 30
SIZES = {
    "vocab_size": 31,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
}
STUDENT = {"intra_bottleneck_size": 8, "num_feedforward_networks": 2, "classifier_activation": False}
TEACHER = {
    "intra_bottleneck_size": 12,
    "num_feedforward_networks": 1,
    "key_query_shared_bottleneck": False,
    "normalization_type": "layer_norm",
    "classifier_activation": True,
}


def model(seed, **fields):
    """Return a model without dropout, with weights wide enough that each of them matters."""
    torch.manual_seed(seed)
    found = MobileBertForPreTraining(MobileBertConfig(**(SIZES | fields))).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return found


def batch(step=0, padded=True):
    generator = torch.Generator().manual_seed(step)
    arrays = {
        "input_ids": torch.randint(1, 31, (2, 6), generator=generator),
        "token_type_ids": torch.randint(2, (2, 6), generator=generator),
    }
    if padded:
        arrays["attention_mask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    return arrays


def config(strategy="pkt", recipe="paper", chosen=("fmt", "at"), lower_layers=0.1, factors=None):
    return LayerwiseConfig(
        strategy=strategy,
        recipe=recipe,
        losses=chosen,
        factors=factors,
        lower_layers=lower_layers,
        steps=STEPS,
        warmup_steps=5,
    )


def forward(model, inputs):
    """Return hidden states (layers + 1, B, T, C) and attention maps (layers, B, H, T, T), in
    float64. They come from one whole forward pass."""
    with torch.no_grad():
        out = model.mobilebert(**inputs, output_hidden_states=True, output_attentions=True)
    return tuple(np.stack([x.numpy() for x in found]).astype(np.float64) for found in (out.hidden_states, out.attentions))


def expected_loss(student, teacher, inputs, layer, recipe, chosen):
    (mine, my_maps), (theirs, their_maps) = forward(student, inputs), forward(teacher, inputs)
    s, t, a, b = mine[layer + 1], theirs[layer + 1], my_maps[layer], their_maps[layer]
    total = 0.0
    log = np.log(np.maximum(a, 1e-12))
    if recipe == "paper":
        real = inputs["attention_mask"].numpy().astype(bool)
        if "fmt" in chosen:
            total += ((s - t) ** 2)[real].mean()
        if "at" in chosen:
            kl = (b * (np.log(np.maximum(b, 1e-12)) - log)).sum(-1).mean(1)
            total += kl[real].mean()
        return total
    if "fmt" in chosen:
        normal = [(x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) for x in (s, t)]
        total += 100 * ((normal[0] - normal[1]) ** 2).mean()
        total += 5000 * ((s.mean(-1) - theirs.mean(-1)) ** 2).mean()  # averages all four of the teacher's states
        total += 5 * np.abs(s.var(-1) - theirs.var(-1)).mean()
    if "at" in chosen:
        total += -(b * log).sum(-1).mean()
    return total
