"""Several students taught by one pass of their teacher, in one process; each one's state and record stay its own.

At the paper's size the teacher's forward pass takes four times the FLOPs of a student's step. The transfer or distillation that
starts first leads: it trains the students of other such jobs beside its own, to a state after their last step. The job of each,
when it runs, goes on from that state as from any other, evaluates and writes its record.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import freshness_of
from mobilebert.jobs.locks import lock, lock_of
from mobilebert.study.graph import jobs_in_scope
from mobilebert.study.job import Job
from mobilebert.study.schema import Study
from mobilebert.study.stage_config import StudentConfig
from mobilebert.training import checkpoint
from mobilebert.training.batches import AHEAD
from mobilebert.training.distributed.processes import world
from mobilebert.training.loop import Task, train
from mobilebert.util.errors import Diverged, UserError

NAME = "train"  # of the training, as the loop calls its state
Prepared = tuple[nn.Module, torch.optim.Optimizer, Task]
BATCHES = ("batch_size", "length", "max_predictions", "seed", "precision", "max_minutes")
LESSONS = {  # what two jobs must have alike, so that their teacher computes the same at the same step
    "distill": (*BATCHES, "temperature", "transfer"),
    "transfer": (*BATCHES, "strategy", "steps"),  # but not the losses: `transfer.Guide` answers each
}


class Stopped(Exception):
    """The leading run has failed: its process ends, and with it the training of the others."""


class SharedPass:
    """What several threads need at each of their steps, made once for all of them.

    Nobody gets what belongs to a step before all the others have asked for that step or a later one, or have left: one that
    lags, after a kill, catches up by itself. From one answer to its next question a thread is alone at work: a run takes the
    cores that one student does, its activations are the only ones, and the kernels of a device's one stream are in order.
    """

    def __init__(self, members: list[str]):
        self.asked: dict[str, tuple[int, int]] = dict.fromkeys(members, (-1, 0))  # (step, micro-batch)
        self.change = threading.Condition()
        self.worker: str | None = None
        self.stopped = False
        self.key: tuple[int, int] | None = None
        self.kept: Any = None
        self.takers = 0

    def get(self, member: str, step: int, make: Callable[[], Any]) -> Any:
        """What `make` returns for a step's next micro-batch, from whoever called first. Raises Stopped."""
        with self.change:
            last, part = self.asked[member]
            key = self.asked[member] = (step, part + 1 if last == step else 0)
            self._rest(member)
            self.change.wait_for(lambda: self.stopped or (self.worker is None and key <= min(self.asked.values())))
            if self.stopped:
                raise Stopped
            self.worker = member
            if self.key != key:
                self.kept, self.key = make(), key
                self.takers = sum(asked == key for asked in self.asked.values())
            found, self.takers = self.kept, self.takers - 1
            if not self.takers:
                self.key = self.kept = None
            return found

    def leave(self, member: str) -> None:
        """Nobody waits for this one any more."""
        with self.change:
            self.asked.pop(member, None)
            self._rest(member)

    def stop(self) -> None:
        """Whoever asks next gets Stopped."""
        with self.change:
            self.stopped = True
            self.change.notify_all()

    def _rest(self, member: str) -> None:
        if self.worker == member:
            self.worker = None
        self.change.notify_all()


@contextlib.contextmanager
def siblings(context: JobContext, study: Study) -> Iterator[list[JobContext]]:
    """The jobs of its stage whose students can be trained beside that of `run`, their locks held: those of a bare `snakemake`
    with the same teacher and batches (see `_lesson`), whose inputs are there, whose own record is not, and that no process makes.

    None for one of torchrun's processes, who would have to agree on them, and where a time budget makes the schedule: the
    others' time would count.
    """
    with contextlib.ExitStack() as held:
        found: list[JobContext] = []
        shares = getattr(study, context.job.stage).share_teacher
        if shares and world().size == 1 and not context.settings(StudentConfig).max_minutes and _steps_left(context):
            for key in jobs_in_scope(study, context.graph):
                job = context.graph[key]
                if job.stage == context.job.stage and key != context.job.id and _lesson(job) == _lesson(context.job):
                    other = JobContext(job, context.study, context.results, context.graph)
                    with contextlib.suppress(UserError), contextlib.ExitStack() as own:
                        own.enter_context(lock(lock_of(other.state), "another process makes it", leader=context.job.id))
                        if _is_ready(other):
                            other.begin()
                            held.enter_context(own.pop_all())
                            found.append(other)
        yield found


def _lesson(job: Job) -> list:
    """What the teacher computes, and from what."""
    config = job.settings(StudentConfig)
    return [job.inputs[1], config.control == "shuffled-teacher", *(getattr(config, key) for key in LESSONS[job.stage])]


def _is_ready(context: JobContext) -> bool:
    if freshness_of(context.results, context.study, context.job, context.graph) == "current" or not _steps_left(context):
        return False
    return all(context.record_of(key).status == "ok" for key in context.job.inputs)  # UserError: missing or stale


def _steps_left(context: JobContext) -> int:
    return context.settings(StudentConfig).steps - checkpoint.finished(context.state / f"{NAME}.safetensors")


def train_together(
    context: JobContext, others: list[JobContext], prepare: Callable[[JobContext, SharedPass], Prepared], device: str
) -> nn.Module:
    """Train the student of `run`, and those of `others` beside it; returns the first.

    prepare: makes a run's student, optimizer and task; the task's loss asks the shared pass for the teacher's outputs. It draws
    weights, so it is called for one run after the other, before any trains; the training draws nothing.

    Raises what `train` raises for `run`. The others end where it diverges too, each at its last step; any other error of it
    stops them. Of an error of theirs a line is printed: their own jobs will meet it again.
    """
    shared = SharedPass([one.job.id for one in (context, *others)])
    student, optimizer, task = prepare(context, shared)
    threads = []
    if others:
        context.details["teacher_shared_with"] = [other.job.id for other in others]
        # Its tokens are not all that the device computes: there is no MFU to tell. A graph waits for nobody: none are recorded.
        task = replace(task, batch=_once(task.batch), flops_per_token=None, graph=False)
    for other in others:
        try:
            theirs, rule, work = prepare(other, shared)
        except UserError as error:
            shared.leave(other.job.id)
            _tell(other, error)
            continue
        work = replace(work, batch=task.batch, flops_per_token=None, graph=False, save_last=True)
        threads.append(threading.Thread(target=_follow, args=(other, shared, theirs, rule, work, device), name=other.job.id))
    try:
        for thread in threads:
            thread.start()
        train(context, student, optimizer, task, NAME, device)
    except Diverged:
        raise
    except BaseException:
        shared.stop()
        raise
    finally:
        shared.leave(context.job.id)
        for thread in threads:
            thread.join()
    return student


def _follow(
    context: JobContext, shared: SharedPass, student: nn.Module, optimizer: torch.optim.Optimizer, task: Task, device: str
) -> None:
    try:
        train(context, student, optimizer, task, NAME, device)
    except (Diverged, UserError) as error:
        _tell(context, error)
    except Stopped:
        pass
    finally:
        shared.leave(context.job.id)


def _tell(context: JobContext, error: Exception) -> None:
    print(f"mobilebert: {context.job.id}: {error}", file=sys.stderr)


def _once(batch: Callable[[int], dict]) -> Callable[[int], dict]:
    """The same, each step's batch made once while the students in step may ask for it."""
    kept, making = functools.lru_cache(AHEAD + 3)(batch), threading.Lock()

    def one(step: int) -> dict:
        with making:
            return kept(step)

    return one
