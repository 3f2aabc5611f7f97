"""Batches on their way to a step: made ahead in a thread, split into micro-batches, named by a hash."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F

from mobilebert.util.errors import UserError

Batch = dict[str, torch.Tensor]
T = TypeVar("T")
AHEAD = 2  # batches that wait: one would do if every batch took as long to make as the others


def ahead(make: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """`make(step)` of each step, in order, made in a thread while the ones before are used.

    `make` is a function of the step alone, so the thread changes nothing but the time. What it raises is raised at its step.
    One thread is enough: it makes several times the 1.5 million tokens a second of length 128 that a GPU learns from.
    """
    pool, waiting = ThreadPoolExecutor(1, "batches"), deque()
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def split(batch: Batch, parts: int, processes: int = 1) -> list[Batch]:
    """A batch of B rows as `parts` batches of B / parts rows, a row more in some where that is no whole number.

    The batch's mean over rows is the sum of its parts' means, each times its share of the rows. A mean over something else
    needs a weight beside that, which each part carries as a scalar: `masked_weight` for means over masked positions (share
    of the masked positions / share of the rows) and `token_weight`, beside an `attention_mask`, for means over real tokens.

    Each of several processes has its rows alone: the shares are then of `whole` (3,), rows, masked positions and real tokens of
    all processes, which `batch` carries.

    Raises UserError for fewer rows than parts.
    """
    if parts * processes == 1:
        return [batch]
    own, length = batch["input_ids"].shape[:2]
    rows, masked, tokens = (batch["whole"] if processes > 1 else _whole(batch)).tolist()
    if rows < parts * processes:
        raise UserError(
            f"batch_size: {rows} rows are fewer than the {parts * processes} parts of a batch (processes x accumulate)"
        )
    found = []
    for start, end in pairwise(own * index // parts for index in range(parts + 1)):
        part = {key: value[start:end] for key, value in batch.items() if key != "whole" and not key.startswith("masked_")}
        share = (end - start) / rows
        if "masked_positions" in batch:
            bounds = torch.tensor([start * length, end * length])
            first, last = torch.searchsorted(batch["masked_positions"], bounds).tolist()
            part["masked_positions"] = batch["masked_positions"][first:last] - start * length
            part["masked_labels"] = batch["masked_labels"][first:last]
            part["masked_weight"] = torch.tensor((last - first) / masked / share)
        if "attention_mask" in batch:
            part["token_weight"] = part["attention_mask"].sum() / tokens / share
        found.append(part)
    return found


def _whole(batch: Batch) -> torch.Tensor:
    """What `split` wants to know of a batch that no other process has rows of."""
    mask = batch.get("attention_mask", torch.tensor(0))
    return torch.tensor([len(batch["input_ids"]), len(batch.get("masked_positions", ())), mask.sum()])


def fill_up(part: Batch, predictions: int) -> Batch:
    """The part with `predictions` masked positions for each row, so that batches are alike in shape.

    The further ones are of token 0 with label -100, which cross-entropy leaves out; a mean over something else of the masked
    positions takes `masked_real` (N,), 1 for those there were and 0 for the further ones. A part that has none, or more than
    these, is returned as it is.
    """
    missing = predictions * len(part["input_ids"]) - len(part.get("masked_positions", ()))
    if "masked_positions" not in part or missing < 0:
        return part
    return part | {
        "masked_positions": F.pad(part["masked_positions"], (0, missing)),
        "masked_labels": F.pad(part["masked_labels"], (0, missing), value=-100),
        "masked_real": F.pad(torch.ones(len(part["masked_positions"])), (0, missing)),
    }


def digest(batch: Batch) -> str:
    """First 12 hexadecimal digits of the sha256 of a batch's arrays, by name."""
    found = hashlib.sha256()
    for key in sorted(batch):
        found.update(key.encode())
        found.update(batch[key].numpy().tobytes())
    return found.hexdigest()[:12]
