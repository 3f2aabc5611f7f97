"""Where a study trains, how fast that could be, and the blocks of a model compiled for it."""

from __future__ import annotations

import torch
from torch import nn

from mobilebert.config import Study
from mobilebert.errors import UserError

# Dense bf16 FLOP/s, by the start of the device's name as CUDA gives it; NVIDIA's data sheets, halved where they count sparsity.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


def device_of(study: Study) -> str:
    """ "cpu" or "cuda". Raises UserError when the study needs a GPU and there is none."""
    if study.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device: the study {study.name} trains on an NVIDIA GPU and this machine shows none; study cpu needs none"
        )
    return study.device


def peak_flops(device: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None for a CPU and for a GPU that the table does not know."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for start, peak in PEAKS.items() if name.startswith(start)), None)


def compile_blocks(model: nn.Module) -> None:
    """`torch.compile` each encoder block, in place. The blocks share their code, so one compilation serves all of them."""
    for block in getattr(model, model.base_model_prefix).encoder.layer:
        block.compile(dynamic=False)  # the evaluation's other batch size must not make the step's kernels general
