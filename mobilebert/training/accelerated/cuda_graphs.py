"""Record a step's kernels once as CUDA graphs and replay them.

The host then starts two graphs a step instead of some thousand kernels. A replay runs the same
kernels with the same addresses and the same scalar arguments. So everything that differs between
two steps must be in tensors with fixed addresses: the batch and the learning rates are copied in
before a replay, and weights and moments change in place. The gradients are in the graphs' memory;
every replay overwrites them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from mobilebert.training.batches import Batch
from mobilebert.training.stepper import Stepper

T = TypeVar("T")
WARM_UP = 3  # steps of a kind before recording, from torch's notes on CUDA graphs


class Capture:
    """A recorder of graphs on one side stream and one memory pool.

    It follows torch's notes on CUDA graphs (`torch.cuda.graph`). Several graphs may share the pool
    because nothing in it outlives a step: a replay reads there only tensors that it wrote, or that
    the replay before it in the same step wrote. Torch frees the pool with the last of its graphs;
    do not use it after that.
    """

    def __init__(self):
        # All pools share one stream: cuBLAS keeps its workspaces for every stream it has served, on
        # Hopper 32 MiB for each of the two threads of forward and backward. A stream for each of
        # PKT's 24 stages would leak 1.5 GB.
        self.stream = torch.cuda.Stream()
        self.renew()

    def renew(self) -> None:
        """Start a new pool. The caller must drop the graphs recorded so far."""
        torch.cuda.synchronize()  # a graph may still be running
        self.pool = torch.cuda.graph_pool_handle()

    def warm(self, work: Callable[[], T]) -> T:
        """Return work(), done on the side stream.

        Handles, workspaces and compiled kernels, which are created at first use, exist afterwards.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            found = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return found

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """Record the work without doing it; return a function that does it on the current stream.

        The function returns the same tensors each time. A graph holds no seed and no offset: each
        replay takes the default generator's state at that moment. So a seed set before a replay is
        the seed of its dropout.
        """
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the thread that prepares batches may pin memory during the capture. The
        # default mode, "global", forbids that in every thread.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            found = work()

        def replay() -> T:
            graph.replay()
            return found

        return replay


@dataclass
class Kind:
    """The graphs of all steps whose micro-batches have the same names, shapes and dtypes."""

    steps: int = 0
    parts: list[Batch] = field(default_factory=list)  # the fixed tensors from which the graphs read the micro-batches
    gradients: Callable | None = None
    update: Callable | None = None


class Graphs:
    """A `Stepper` that replays graphs, in one process. It gives the same results up to rounding.

    Pre-training has two kinds of steps: with a padded row, and without (attention then needs no
    mask). The first WARM_UP steps of a kind are done kernel by kernel. They are real steps of the
    training, so warming up changes no result; they also create the moments. When the training
    enters another stage (`TrainingPlan.stage`), other layers learn, so all graphs are dropped.

    Each kind has two graphs, because between gradients and update the host checks that the losses
    are finite. Only there does a step wait for the device, with graphs or without; during the
    update the host already prepares the next step.
    """

    def __init__(self, step: Stepper):
        self.step, self.groups = step, step.optimizer.param_groups
        self.prepare = step.prepare
        self.rates = torch.zeros(len(self.groups), device=step.device, dtype=self.groups[0]["params"][0].dtype)
        self.stage: int | None = None
        self.capture, self.kinds = Capture(), {}

    def gradients(self, parts: list[Batch], rows: int, place: int, saves: bool = False) -> tuple[list[str], torch.Tensor]:
        """Return what `Stepper.gradients` returns.

        saves: ignored, because a single process has no other process to tell.
        """
        stage = self.step.plan.stage(place)
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
        """Do `Stepper.update` with the gradients of the last call of `gradients`."""
        if self.kind.steps <= WARM_UP:
            self.capture.warm(self.step.update)
            return
        if self.kind.update is None:
            self.kind.update = self.capture.record(self.step.update)
        self.kind.update()
