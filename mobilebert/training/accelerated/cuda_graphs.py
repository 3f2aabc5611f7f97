"""A step's kernels recorded once as CUDA graphs and replayed: the host starts two graphs in place of some thousand kernels.

A graph repeats its kernels on the same addresses with the same numbers. So whatever differs between two steps is in tensors that
stay where they are: the batch and the learning rates, which are filled before a replay, and weights and moments, which change in
place. The gradients lie in the graphs' own memory, and every replay writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from mobilebert.training.batches import Batch

T = TypeVar("T")
WARM_UP = 3  # steps of a kind before it is recorded, as in torch's notes on CUDA graphs


class Capture:
    """Recording and replaying after torch's notes on CUDA graphs (`torch.cuda.graph`), on one side stream and from one pool of
    memory.

    The pool may serve several graphs because nothing in it outlives a step: what a replay reads there, it or the one just before
    it in the same step has written. It is not used again once its graphs are gone: torch gives it up with the last of them.
    """

    def __init__(self):
        # One for all pools: cuBLAS keeps the workspaces of every stream that it has served, on Hopper 32 MiB for each of the two
        # threads of forward and backward. A stream for each of PKT's 24 stages would leave 1.5 GB behind.
        self.stream = torch.cuda.Stream()
        self.renew()

    def renew(self) -> None:
        """Another pool: the graphs recorded so far are given up now."""
        torch.cuda.synchronize()  # one of them may still run
        self.pool = torch.cuda.graph_pool_handle()

    def warm(self, work: Callable[[], T]) -> T:
        """Do the work on the side stream: what is made at a first use (handles, workspaces, compiled kernels) is then there."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            found = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return found

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """Record the work, without doing it; returns what does it, on the current stream, and gives the same tensors each time.

        Random draws go on from the default generator: a graph knows no seed and no offset, a replay hands it the generator's
        state of that moment. So a seed set before a replay is the seed of its dropout.
        """
        graph = torch.cuda.CUDAGraph()
        # Errors of this thread alone: the one that makes batches pins memory meanwhile, which a capture of all threads forbids.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            found = work()

        def replay() -> T:
            graph.replay()
            return found

        return replay


@dataclass
class Kind:
    """Steps that agree in all that a graph fixes, and what is recorded of them."""

    steps: int = 0
    parts: list[Batch] = field(default_factory=list)  # where the graphs read the batch
    gradients: Callable | None = None
    update: Callable | None = None


class Graphs:
    """`loop.Step` from graphs, for one process: the same calls, and the same results but for rounding.

    Steps are of one kind whose parts have the same names, shapes and dtypes: in pre-training those with a padded row and those
    without, whose attention needs no mask. A kind's first steps are done kernel by kernel: they are steps of the run, so warming
    up changes nothing beside them, and they make the moments. A kind with no more steps than these stays so. Other layers learn
    in another stage (`loop.Task.stage`): then all graphs are given up.

    There are two graphs a kind, for between gradients and update the host looks whether the losses are finite. It is the one
    moment a step waits for the device, with graphs or without; during the update the host is at the next step already.
    """

    def __init__(self, step):
        self.step, self.groups = step, step.optimizer.param_groups
        self.rates = torch.zeros(len(self.groups), device=step.device, dtype=self.groups[0]["params"][0].dtype)
        self.capture, self.stage, self.kinds = Capture(), None, {}

    def gradients(self, parts: list[Batch], rows: int, place: int) -> tuple[list[str], torch.Tensor]:
        """As `Step.gradients`."""
        stage = self.step.task.stage(place)
        if stage != self.stage:
            self.capture.renew()
            self.stage, self.kinds = stage, {}
        self.rates.copy_(torch.tensor([group["lr"] for group in self.groups], dtype=self.rates.dtype), non_blocking=True)
        for group, rate in zip(self.groups, self.rates.unbind(), strict=True):
            group["lr"] = rate
        names = tuple(tuple((name, value.shape, value.dtype) for name, value in sorted(part.items())) for part in parts)
        kind = self.kind = self.kinds.setdefault(names, Kind())
        kind.steps += 1
        if kind.steps <= WARM_UP:
            return self.capture.warm(lambda: self.step.gradients(parts, rows, place))
        if not kind.parts:
            kind.parts = [{name: torch.empty_like(x, device=self.step.device) for name, x in part.items()} for part in parts]
        for fixed, part in zip(kind.parts, parts, strict=True):
            for name, value in part.items():
                fixed[name].copy_(value, non_blocking=True)
        if kind.gradients is None:
            kind.gradients = self.capture.record(lambda: self.step.gradients(kind.parts, rows, place))
        return kind.gradients()

    def update(self) -> None:
        """As `Step.update`, of the gradients just made."""
        if self.kind.steps <= WARM_UP:
            self.capture.warm(self.step.update)
            return
        if self.kind.update is None:
            self.kind.update = self.capture.record(self.step.update)
        self.kind.update()
