"""Where a study trains: what it says, or nowhere."""

from __future__ import annotations

import torch

from mobilebert.config import Study
from mobilebert.errors import UserError


def device_of(study: Study) -> str:
    """ "cpu" or "cuda". Raises UserError when the study needs a GPU and there is none."""
    if study.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device: the study {study.name} trains on an NVIDIA GPU and this machine shows none; study cpu needs none"
        )
    return study.device
