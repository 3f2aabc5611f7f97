"""Train data-parallel: torchrun's processes share each step's batch and sum their gradients.

    torchrun --nproc-per-node 2 -m mobilebert pretrain ib-bert-large --study gpu

Every process holds all weights and takes the same steps; the optimizer's moments are distributed
(`sharding`). Only the first process writes saved state, curves and record. The others read the
results folder: on several machines it must be a folder that all of them see.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.execute import execute_job as execute_alone
from mobilebert.jobs.record import Record
from mobilebert.study.job import Graph, Job
from mobilebert.training.device import usable
from mobilebert.util.errors import Diverged, UserError

STAGES = ("pretrain", "transfer", "distill")  # their losses use the weights of `batches.split`
PATIENCE = timedelta(hours=2)  # the others wait while the first process evaluates and saves


@dataclass(frozen=True)
class World:
    """This process's place among `size` of them."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Return whether this is the first process, the only one that writes."""
        return self.rank == 0

    def sum(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes; one message for all tensors."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors)])

    def agree(self, value: float) -> float:
        """Return the first process's value in all processes: clocks differ."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.item()

    def same(self, *values: int) -> bool:
        """Return whether all processes have the first one's values (each below 2^53).

        The answer is the same in all processes.
        """
        if self.size == 1:
            return True
        own = torch.tensor(values, dtype=torch.float64)
        first = own.clone()
        dist.broadcast(first, 0)
        differ = (own != first).sum()
        dist.all_reduce(differ)
        return not differ.item()


def world() -> World:
    """Return this process's place; a single process unless `execute` has joined several."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


def execute(
    job: Job, study: str, results: Path, graph: Graph, stage: Callable[[JobContext], str | None], device: str
) -> Record | None:
    """Run `execute_job` in the first of torchrun's processes and return its record.

    The other processes do the same training steps, write nothing and return None. Raises UserError
    if the stage cannot run in several processes, if they cannot be joined or if another one has
    failed, and whatever `execute_job` raises.
    """
    if job.stage not in STAGES:
        raise UserError(f"{job.stage}: runs in one process; torchrun is for {', '.join(STAGES)}")
    cuda = usable(device, study) == "cuda"
    try:
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:  # a variable is missing or no number, NCCL is missing, no answer at the address
        line = str(error).strip().splitlines()[0]
        raise UserError(f"the processes cannot be joined ({line}); start them with torchrun") from None
    try:
        return _lead(job, study, results, graph, stage) if world().leads else _follow(job, study, results, graph, stage)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo raises plain RuntimeErrors
            raise
        raise UserError("another torchrun process failed; see its output") from None
    finally:
        dist.destroy_process_group()


def _lead(job, study, results, graph, stage) -> Record:
    told = False

    def begin(context: JobContext):
        nonlocal told
        told = True
        world().agree(1.0)
        return stage(context)

    try:
        return execute_alone(job, study, results, graph, begin)
    finally:
        if not told:  # the record is current already, or the job was refused
            world().agree(0.0)


def _follow(job, study, results, graph, stage) -> None:
    if not world().agree(0.0):
        return
    run = JobContext(job, study, results, graph)
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(Diverged):  # the first process reports it
        run.folder = Path(scratch)
        stage(run)
