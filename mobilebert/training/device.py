"""Where a study trains, how fast that could be, and the blocks of a model compiled for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError


def device_of(study: Study) -> str:
    """ "cpu" or "cuda". Raises UserError when the study needs a GPU and there is none."""
    return usable(study.device, study.name)


def usable(device: str, study: str) -> str:
    """`device`, of the study of that name. Raises UserError when it is a GPU and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: the study {study} trains on an NVIDIA GPU and this machine shows none; study cpu needs none")
    return device


def compile_blocks(model: nn.Module) -> None:
    """`torch.compile` each encoder block, in place. The blocks share their code, so one compilation serves all of them."""
    prefix: Any = model.base_model_prefix
    for block in getattr(model, prefix).encoder.layer:
        block.compile(dynamic=False)  # the evaluation's other batch size must not make the step's kernels general
