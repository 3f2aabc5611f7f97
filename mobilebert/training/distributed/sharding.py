"""The optimizer's state, shared out over the processes: each updates its own tensors; weights are everywhere (ZeRO stage 1).

Rajbhandari et al. 2020, section 5.1, with whole tensors as what is shared out: LAMB's trust ratio is of a whole tensor, so every
update is the one that a single process makes. Of the teacher, 306M parameters with its heads in float32, N processes hold 1.23 GB
of weights, 1.23 GB of gradients and 2.45 / N GB of moments each: 2.8 GB with eight, 4.9 GB alone.

Every gradient goes to the process that keeps its tensor, every updated tensor from there to the others: a copy of the model each,
as much as one all-reduce, which is made of the same two halves. Torch's ZeroRedundancyOptimizer shares out whole tensors too, but
wants the gradients summed everywhere first, half as much traffic again, sends what does not learn in a stage of PKT too, and
collects its state by pickle.
"""

# torch lists no _foreach function in __all__.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from mobilebert.training.distributed.processes import World

MOMENTS = ("m", "v")


class Shards:
    """Which of the processes keeps each of `parameters`: the largest first, each to the one that has least, alike in all of them.

    In a world of one nothing is sent, and everything is kept.
    """

    def __init__(self, parameters: list[nn.Parameter], group: World):
        self.parameters, self.group, self.owner = parameters, group, {}
        kept = [0] * group.size
        for parameter in sorted(parameters, key=torch.Tensor.numel, reverse=True):
            rank = kept.index(min(kept))
            self.owner[parameter] = rank
            kept[rank] += parameter.numel()
        self.learning: list[list[nn.Parameter]] = []  # at this step, of each process of several

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values`, in place, and the gradients over the processes; the norm of all the gradients.

        The same parameters have a gradient in all processes. Afterwards it is where its tensor is kept; elsewhere it is None, and
        the optimizer passes the tensor by.
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
        # Those of the other processes' tensors are added as zeros, so the norm is that of all the norms, as in one process.
        norms = torch.stack([none if p.grad is None else next(found) for p in trained] or [none])
        self.group.sum([values, norms])
        return torch.linalg.vector_norm(norms)

    @torch.no_grad()
    def spread(self) -> None:
        """The tensors that the optimizer has updated, from where they are kept to everywhere."""
        for rank, theirs in enumerate(self.learning):
            if theirs:
                flat = torch.cat([p.flatten() for p in theirs])
                dist.broadcast(flat, rank)
                if rank != self.group.rank:
                    pieces = flat.split([p.numel() for p in theirs])
                    torch._foreach_copy_([*theirs], [piece.view_as(p) for p, piece in zip(theirs, pieces)])

    def drop(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the moments that other processes keep."""
        for parameter, rank in self.owner.items():
            if rank != self.group.rank:
                optimizer.state.pop(parameter, None)

    @contextlib.contextmanager
    def gathered(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside, the first process has all moments, those of the others in main memory, one tensor after the other."""
        if self.group.size > 1:
            known = torch.tensor([bool(optimizer.state.get(p)) for p in self.parameters], dtype=torch.int64)
            dist.all_reduce(known)  # what has never learnt has none
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
