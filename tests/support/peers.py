"""Models of ours and transformers' with the same weights, their parts and the modes they run in."""

import torch
from family import LABELS, pair

MODES = {"training": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
PARTS = (  # one of each kind, in the block's order
    "encoder.layer.0.bottleneck.input.dense",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.0.attention.output.LayerNorm",
    "encoder.layer.0.ffn.0.intermediate.dense",
    "encoder.layer.0.ffn.0.intermediate.activation",
    "encoder.layer.0.ffn.0.output.LayerNorm",
    "encoder.layer.0.intermediate.dense",
    "encoder.layer.0.output.dense",
    "encoder.layer.0.output.bottleneck.dropout",
)
WEIGHTS = [path for path in PARTS if path.endswith(("dense", "LayerNorm"))]


def both(head: str, **fields):
    return pair(head, num_labels=2 if head == "ForQuestionAnswering" else LABELS, **fields)


def first(output) -> torch.Tensor:
    return next(value for value in output.values() if value is not None)
