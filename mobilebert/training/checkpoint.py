"""The state of a run under way: one safetensors file with weights, optimizer moments, the step and the time used.

All randomness of a step is a function of (seed, step), so there is no generator to save. The file is written under a temporary
name, synced and renamed: after a kill there is the last whole one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mobilebert.util.errors import UserError
from mobilebert.util.files import settle

LEAST_SECONDS = 3.0  # between two states
SPACING = 50  # times what a state takes to write: 2 % of the time, at most


class Pace:
    """When a run saves itself beside its every so many steps: a kill costs it seconds, and saving next to nothing."""

    def __init__(self):
        self.last, self.cost = time.monotonic(), 0.0

    def is_due(self) -> bool:
        """Return whether LEAST_SECONDS and SPACING times the last state's cost have gone since it was written.

        A process does not know the cost of its first state: that one is due after LEAST_SECONDS.
        """
        return time.monotonic() - self.last >= max(LEAST_SECONDS, SPACING * self.cost)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a state that is written inside."""
        begin = time.monotonic()
        yield
        self.last = time.monotonic()
        self.cost = self.last - begin


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    fingerprint: str,
    steps: int | None = None,
    seconds: float = 0.0,
) -> None:
    """Write the state after `step` finished steps of `steps`, which took `seconds`.

    Raises UserError when it cannot be written, as on a full disk; the state before it is then still there.
    """
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    facts = {"step": step, "steps": steps, "seconds": seconds, "fingerprint": fingerprint}
    facts = {key: str(value) for key, value in facts.items()}
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, facts | {"crc32": _crc32(tensors, facts)})
        settle(part, path)
    except (SafetensorError, OSError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: the state after step {step} cannot be written ({error}); the last one stays") from None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str) -> tuple[int, float]:
    """Restore what `save` wrote and return the finished steps and the seconds they took; 0 and 0 where there is no file.

    Raises UserError, by name, for a damaged file or one of another run.
    """
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, "pt") as stream:
            facts = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged state ({error}); delete it to start this run from its first step") from None
    if facts.pop("crc32", None) != _crc32(tensors, facts):
        raise UserError(f"{path}: damaged state (checksum); delete it to start this run from its first step")
    if facts.get("fingerprint") != fingerprint:
        found, own = (f"{text[:12]}{text[64:]}" for text in (facts.get("fingerprint", "?"), fingerprint))
        raise UserError(f"{path}: state of another run, or split over other processes and parts ({found}, this is {own})")
    weights = _weights(model)
    expected = {f"model.{name}": value.shape for name, value in weights.items()}
    if expected != {key: value.shape for key, value in tensors.items() if key.startswith("model.")}:
        raise UserError(f"{path}: state of another architecture; delete it to start this run from its first step")
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(tensors[f"model.{name}"])
    for name, parameter in model.named_parameters():
        found = {key: tensors.get(f"optimizer.{key}.{name}") for key in ("m", "v")}
        if found["m"] is not None:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in found.items() if value is not None}
    return int(facts["step"]), float(facts["seconds"])


def finished(path: Path) -> int:
    """Finished steps by a state's own word, its content unread; 0 where there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as stream:
            return int((stream.metadata() or {}).get("step", 0))
    except (SafetensorError, OSError, ValueError):
        return 0


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, a tied tensor once."""
    found, seen = {}, set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            found[name] = value
    return found


def weights_crc32(model: nn.Module) -> int:
    """Of every weight's bytes."""
    return int(_crc32({key: value.detach().cpu() for key, value in _weights(model).items()}, {}), 16)


def save_pretrained(model: nn.Module, folder: Path) -> None:
    """Save a finished model in Hugging Face layout. Raises UserError when it cannot be written, as on a full disk."""
    try:
        cast(Any, model).save_pretrained(folder)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # what there is of it fills the disk
        raise UserError(f"{folder}: the model cannot be written ({' '.join(str(error).split())})") from None


def _crc32(tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> str:
    """Of every name, byte and fact: a safetensors file by itself does not know that a weight has changed."""
    found = zlib.crc32(json.dumps([facts, sorted(tensors)], sort_keys=True).encode())
    for key in sorted(tensors):
        found = zlib.crc32(tensors[key].flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
