"""Prepare batches for a step: build them ahead in a thread, split them, pad them, hash them."""

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
AHEAD = 2  # batches that wait; one would be enough if all batches took equally long to build


def ahead(make: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """Yield `make(step)` of each step, in order, built in a thread while earlier ones are used.

    `make` is a function of the step alone, so the thread changes only the time. An error in `make`
    is raised here, at its step. One thread is enough: it builds several times the 1.5 million
    tokens a second that a GPU learns from at length 128.
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
    """Return a batch of B rows as `parts` micro-batches of B / parts rows, rounded up or down.

    The mean over the batch's rows is the sum of the micro-batches' means, each times its share of
    the rows. Other means need a further weight, a scalar in each micro-batch: `masked_weight` for
    means over masked positions (share of the masked positions / share of the rows); `token_weight`,
    if there is an `attention_mask`, for means over real tokens.

    With several processes `batch` holds only this process's rows, and the shares are relative to
    its `whole` (3,): rows, masked positions and real tokens of all processes.

    Raises UserError if there are fewer rows than micro-batches of all processes.
    """
    if parts * processes == 1:
        return [batch]
    own, length = batch["input_ids"].shape[:2]
    rows, masked, tokens = (batch["whole"] if processes > 1 else _whole(batch)).tolist()
    if rows < parts * processes:
        raise UserError(
            f"batch_size: {rows} rows are fewer than the {parts * processes} micro-batches (processes x accumulate); "
            "raise batch_size or lower accumulate"
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
    """Return `whole` of a single process's batch: rows, masked positions, real tokens (3,)."""
    mask = batch.get("attention_mask", torch.tensor(0))
    return torch.tensor([len(batch["input_ids"]), len(batch.get("masked_positions", ())), mask.sum()])


def fill_up(part: Batch, predictions: int) -> Batch:
    """Return the micro-batch padded to `predictions` masked positions a row, for a fixed shape.

    Added positions point at token 0 and have label -100, which cross-entropy ignores. Other means
    over masked positions use `masked_real` (N,): 1 for real positions, 0 for added ones. A
    micro-batch without masked positions, or with more of them, is returned unchanged.
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
    """Return the first 12 hexadecimal digits of the sha256 of a batch's names and arrays."""
    found = hashlib.sha256()
    for key in sorted(batch):
        found.update(key.encode())
        found.update(batch[key].numpy().tobytes())
    return found.hexdigest()[:12]
