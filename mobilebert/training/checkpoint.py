"""Save and restore a running training: weights, optimizer moments, step and seconds used.

All randomness of a step is a function of (seed, step), so no generator is saved. The state is one
safetensors file. It is written under a temporary name, synced and renamed, so a kill leaves the
last complete state.
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

LEAST_SECONDS = 3.0  # between two saves
SPACING = 50  # times the seconds that a save takes: at most 2 % of the time is spent on saving


class Pace:
    """A clock that says when to save, besides the saves every `checkpoint_every` steps.

    A kill then loses only seconds, and saving costs little.
    """

    def __init__(self):
        self.last, self.cost = time.monotonic(), 0.0

    def is_due(self) -> bool:
        """Return whether enough time has passed since the last save.

        Enough is LEAST_SECONDS, or SPACING times the cost of the last save if that is longer. The
        first save of a process has no known cost, so it is due after LEAST_SECONDS.
        """
        return time.monotonic() - self.last >= max(LEAST_SECONDS, SPACING * self.cost)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the cost of a save done inside the block."""
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

    Raises UserError if it cannot be written, as on a full disk; the state before it is then kept.
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
        raise UserError(f"{path}: the state after step {step} cannot be written ({error}); the one before it is kept") from None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str) -> tuple[int, float]:
    """Restore what `save` wrote and return the finished steps and their seconds.

    Returns 0 and 0 if there is no file. Raises UserError, naming the file, if it is damaged or
    belongs to another training.
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
        raise UserError(f"{path}: damaged state (wrong checksum); delete it to start this run from its first step")
    if facts.get("fingerprint") != fingerprint:
        found, own = (f"{text[:12]}{text[64:]}" for text in (facts.get("fingerprint", "?"), fingerprint))
        raise UserError(
            f"{path}: state of another run, or saved with a different number of processes or micro-batches "
            f"({found}, this run is {own}); use the same numbers, or delete it to start this run from its first step"
        )
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
    """Return the finished steps that a state's header names; 0 if it is missing or damaged.

    The tensors and the checksum are not read.
    """
    try:
        with safe_open(path, "pt") as stream:
            return int((stream.metadata() or {}).get("step", 0))
    except (SafetensorError, OSError, ValueError):
        return 0


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, a tied tensor once."""
    found, seen = {}, set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            found[name] = value
    return found


def weights_crc32(model: nn.Module) -> int:
    """Return the CRC-32 of the names and bytes of all parameters and buffers."""
    return int(_crc32({key: value.detach().cpu() for key, value in _weights(model).items()}, {}), 16)


def save_pretrained(model: nn.Module, folder: Path) -> None:
    """Save a finished model in Hugging Face layout.

    Raises UserError if it cannot be written, as on a full disk; the folder is then removed.
    """
    try:
        cast(Any, model).save_pretrained(folder)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # a half-written model would keep the disk full
        raise UserError(f"{folder}: the model cannot be written ({' '.join(str(error).split())})") from None


def _crc32(tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> str:
    """Return the CRC-32 of metadata, names and bytes: safetensors itself has no checksum."""
    found = zlib.crc32(json.dumps([facts, sorted(tensors)], sort_keys=True).encode())
    for key in sorted(tensors):
        found = zlib.crc32(tensors[key].flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
