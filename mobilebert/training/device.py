"""Choose the device on which a study trains, and compile a model's blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError


def device_of(study: Study) -> str:
    """Return "cpu" or "cuda". Raises UserError if the study needs a GPU and there is none."""
    return usable(study.device, study.name)


def usable(device: str, study: str) -> str:
    """Return `device`. Raises UserError, naming the study, if it is "cuda" and there is no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: the study {study} trains on an NVIDIA GPU and this machine shows none; study cpu needs none")
    return device


def compile_blocks(model: nn.Module) -> None:
    """Apply `torch.compile` to each encoder block, in place.

    The blocks share their code, so one compilation serves all of them.
    """
    prefix: Any = model.base_model_prefix
    for block in getattr(model, prefix).encoder.layer:
        block.compile(dynamic=False)  # evaluation has another batch size: the step's kernels must stay specialised
