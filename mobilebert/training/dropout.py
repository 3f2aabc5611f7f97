"""Dropout that every row of a batch draws for itself: the same whichever process or micro-batch holds the row.

A row has a generator of its own, seeded by the run's seed, the step and the row's place in the whole batch. Every call draws a
mask from each of them, and a row meets the calls in the same order wherever it is. On a CPU this takes as long as one mask for
all rows. A GPU would start a kernel for each row, and give up the fused attention that draws inside its kernel: there, and in
compiled blocks, torch draws, and another split of the batch is another draw.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def row_seeds(seed: int, step: int, first: int, count: int) -> torch.Tensor:
    """Return the seeds of `count` rows from row `first` of a step's batch, (count,), each below 2^32.

    They are hashed: a CPU generator reads no more than 32 bits of its seed.
    """
    keys = (f"{seed} {step} {row}".encode() for row in range(first, first + count))
    return torch.tensor([int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) for key in keys])


class RowDropout(TorchFunctionMode):
    """Inside, dropout of states and of attention draws from the rows' own generators, on the CPU.

    seeds: (rows,), from `row_seeds`. Raises ValueError for dropout of a tensor whose first dimension is not the rows.
    """

    def __init__(self, seeds: torch.Tensor):
        super().__init__()
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is F.dropout:
            return self.dropout(*arguments, **(options or {}))
        if function is F.scaled_dot_product_attention:
            return self.attention(*arguments, **(options or {}))
        return function(*arguments, **(options or {}))

    def dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not (training and p):
            return x
        if len(x) != len(self.generators):
            raise ValueError(f"dropout of {tuple(x.shape)}: its first dimension is not the {len(self.generators)} rows")
        mask = torch.empty_like(x)
        for row, generator in zip(mask, self.generators, strict=True):
            row.bernoulli_(1 - p, generator=generator)
        return x * mask.div_(1 - p)

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options,
    ) -> torch.Tensor:
        """As torch's, which on a CPU holds the probabilities too if it drops some of them."""
        if not dropout_p:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, **options)
        if is_causal:
            raise ValueError("dropout of a causal attention: the models that are pre-trained have none")
        scale = options.get("scale") or query.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):  # torch's widens no scores either
            scores = (query * scale) @ key.transpose(-1, -2)
            if attn_mask is not None:
                scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            return self.dropout(scores.softmax(-1), dropout_p) @ value
