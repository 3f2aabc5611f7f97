"""Draw dropout row by row: a row's mask is the same whichever process or micro-batch holds it.

Each row has a generator, seeded by the job's seed, the step and the row's place in the whole batch.
Every dropout call draws a mask from each generator, in the same order wherever the row is. On a CPU
this takes as long as one mask for all rows. A GPU would start a kernel for each row and lose the
fused attention, which draws inside its kernel. On a GPU, and in compiled blocks, torch draws
instead, and the masks depend on how the batch is split.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


def row_seeds(seed: int, step: int, first: int, count: int) -> torch.Tensor:
    """Return the seeds of `count` rows, from row `first` of a step's batch: (count,), below 2^32.

    The seeds are hashes because a CPU generator reads only 32 bits of its seed.
    """
    keys = (f"{seed} {step} {row}".encode() for row in range(first, first + count))
    return torch.tensor([int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) for key in keys])


class RowDropout(TorchFunctionMode):
    """A context in which hidden-state and attention dropout draw row by row, on the CPU.

    seeds: (rows,), from `row_seeds`. Raises ValueError for dropout of a tensor whose first
    dimension is not the rows, or of causal attention.
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
        """Return `F.dropout` of x (rows, ...) with masks by row, never in place."""
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
        """Return `F.scaled_dot_product_attention` with masks by row.

        With dropout it holds all probabilities in memory; so does torch's on a CPU.
        """
        if not dropout_p:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, **options)
        if is_causal:
            raise ValueError("dropout of causal attention by row is not supported: no model that is pre-trained needs it")
        scale = options.get("scale") or query.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):  # torch's attention does not cast scores to float32 either
            scores = (query * scale) @ key.transpose(-1, -2)
            if attn_mask is not None:
                scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            return self.dropout(scores.softmax(-1), dropout_p) @ value
