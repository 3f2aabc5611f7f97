"""Distribute the optimizer's moments over the processes (ZeRO stage 1).

All processes hold all weights; each updates only the tensors it owns (Rajbhandari et al. 2020,
section 5.1). Tensors are not cut, because LAMB's trust ratio needs the whole tensor: every update
then equals that of a single process. For the teacher (306M parameters with its heads, float32) each
of N processes holds 1.23 GB of weights, 1.23 GB of gradients and 2.45 / N GB of moments: 2.8 GB
with eight processes, 4.9 GB with one.

Every gradient is sent to the process that owns its tensor, and every updated tensor from there to
the others. Each of the two sends one copy of the model; together they are as much traffic as one
all-reduce, which consists of the same two halves. Torch's ZeroRedundancyOptimizer distributes whole
tensors too. But it needs the gradients summed in all processes first (half as much traffic again),
also sends tensors that do not learn in a stage of PKT, and collects its state by pickle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from mobilebert.training.distributed.processes import World

MOMENTS = ("m", "v")


class Shards:
    """An assignment of each of `parameters` to the process that owns its moments.

    Tensors are assigned from the largest to the smallest, each to the process with the fewest
    elements so far. All processes compute the same assignment. A single process owns everything and
    sends nothing.
    """

    def __init__(self, parameters: list[nn.Parameter], group: World):
        self.parameters, self.group, self.owner = parameters, group, {}
        kept = [0] * group.size
        for parameter in sorted(parameters, key=torch.Tensor.numel, reverse=True):
            rank = kept.index(min(kept))
            self.owner[parameter] = rank
            kept[rank] += parameter.numel()
        self.learning: list[list[nn.Parameter]] = []  # by owner, the parameters with a gradient at this step; [] in one process

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (in place) and the gradients over the processes; return all gradients' norm.

        The same parameters must have a gradient in all processes. Afterwards only the owner has it;
        elsewhere it is None, and the optimizer skips the tensor.
        """
        trained = [p for p in self.parameters if p.grad is not None]
        if self.group.size > 1:
            self.learning = [[p for p in trained if self.owner[p] == rank] for rank in range(self.group.size)]
        for rank, theirs in enumerate(self.learning):
            if theirs:
                flat = torch.cat([p.grad.flatten() for p in theirs if p.grad is not None])
                dist.reduce(flat, rank)
                for p, piece in zip(theirs, flat.split([p.numel() for p in theirs])):
                    p.grad = piece.view_as(p) if rank == self.group.rank else None
        own = [p.grad for p in trained if p.grad is not None]
        found, none = iter(torch._foreach_norm(own) if own else ()), values.new_zeros(())
        # Each process puts 0 for the tensors it does not own. So the sum holds every tensor's norm,
        # and the result is the norm of these norms, as in one process.
        norms = torch.stack([none if p.grad is None else next(found) for p in trained] or [none])
        self.group.sum([values, norms])
        return torch.linalg.vector_norm(norms)

    @torch.no_grad()
    def spread(self) -> None:
        """Send the tensors that the optimizer has updated from their owners to all processes."""
        for rank, theirs in enumerate(self.learning):
            if theirs:
                flat = torch.cat([p.flatten() for p in theirs])
                dist.broadcast(flat, rank)
                if rank != self.group.rank:
                    pieces = flat.split([p.numel() for p in theirs])
                    torch._foreach_copy_([*theirs], [piece.view_as(p) for p, piece in zip(theirs, pieces)])

    def drop(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the moments that other processes own."""
        for parameter, rank in self.owner.items():
            if rank != self.group.rank:
                optimizer.state.pop(parameter, None)

    @contextlib.contextmanager
    def gathered(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Give the first process all moments inside the block; drop the others' afterwards.

        The moments of other processes are sent one tensor after the other and stay in main memory.
        """
        if self.group.size > 1:
            known = torch.tensor([bool(optimizer.state.get(p)) for p in self.parameters], dtype=torch.int64)
            dist.all_reduce(known)  # 0 for a tensor that has never learnt: it has no moments
            for parameter in [p for p, count in zip(self.parameters, known.tolist()) if count and self.owner[p]]:
                for key in MOMENTS:
                    if self.group.leads:
                        moment = torch.empty(parameter.shape, dtype=parameter.dtype)
                        dist.recv(moment, self.owner[parameter])
                        optimizer.state[parameter][key] = moment
                    elif self.owner[parameter] == self.group.rank:
                        dist.send(optimizer.state[parameter][key].cpu(), 0)
        yield
        self.drop(optimizer)
