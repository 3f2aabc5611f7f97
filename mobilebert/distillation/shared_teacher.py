"""Train several students with one forward pass of their teacher, in one process.

At the paper's size the teacher's forward pass takes four times the FLOPs of a student's step. The
transfer or distillation job that starts first leads: it also trains the students of other such
jobs, each to a saved state after the last step. When one of those jobs starts later, it resumes
from its state, evaluates and writes its record.
"""

from __future__ import annotations

import contextlib
import functools
import logging
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
from mobilebert.training.loop import train
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.errors import Diverged, UserError

logger = logging.getLogger(__name__)

NAME = "train"  # the loop's name for the saved state
Prepared = tuple[nn.Module, torch.optim.Optimizer, TrainingPlan]
BATCHES = ("batch_size", "length", "max_predictions", "seed", "precision", "max_minutes")
TEACHER_SETTINGS = {  # settings that must be equal in two jobs, so that their teacher computes the same at each step
    "distill": (*BATCHES, "temperature", "transfer"),
    "transfer": (*BATCHES, "strategy", "steps"),  # not the losses: `teacher_layers.Guide` serves all of them
}


class Stopped(Exception):
    """The leading job has failed: its process ends, and so does the training of the others."""


class SharedPass:
    """A value per micro-batch, computed once and handed to the threads of several students.

    A member gets a step's value only after all others have asked for that step or a later one, or
    have left. So a member that resumed at an earlier step first catches up alone. Only one thread
    works at a time, from the return of its `get` to its next call. So the process uses the cores of
    one student, holds the activations of one student, and queues its kernels in order on the
    device's only stream.
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
        """Return the value of a step's next micro-batch; the first caller's `make` computes it.

        Raises Stopped after `stop`.
        """
        with self.change:
            last, part = self.asked[member]
            key = self.asked[member] = (step, part + 1 if last == step else 0)
            self._release(member)
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
        """Remove a member, so that no other waits for it."""
        with self.change:
            self.asked.pop(member, None)
            self._release(member)

    def stop(self) -> None:
        """Make every waiting and every later `get` raise Stopped."""
        with self.change:
            self.stopped = True
            self.change.notify_all()

    def _release(self, member: str) -> None:
        if self.worker == member:
            self.worker = None
        self.change.notify_all()


@contextlib.contextmanager
def jobs_sharing_teacher(context: JobContext, study: Study) -> Iterator[list[JobContext]]:
    """Yield the jobs whose students can be trained beside that of `context`, and hold their locks.

    Such a job is one that a bare `snakemake` runs, of the same stage, with the same teacher and
    batches (see `_teacher_key`). Its inputs are current, its record is not, it has steps left, and
    no other process holds its lock.

    Yields no job if `share_teacher` is off or `context` has no step left. Yields none under
    torchrun, because all processes would have to choose the same jobs. Yields none if `max_minutes`
    sets the schedule, because the other students' time would count.
    """
    with contextlib.ExitStack() as held:
        found: list[JobContext] = []
        shares = getattr(study, context.job.stage).share_teacher
        if shares and world().size == 1 and not context.settings(StudentConfig).max_minutes and _steps_left(context):
            for key in jobs_in_scope(study, context.graph):
                job = context.graph[key]
                if job.stage == context.job.stage and key != context.job.id and _teacher_key(job) == _teacher_key(context.job):
                    other = JobContext(job, context.study, context.results, context.graph)
                    with contextlib.suppress(UserError), contextlib.ExitStack() as own:
                        own.enter_context(lock(lock_of(other.state), "another process makes it", leader=context.job.id))
                        if _is_ready(other):
                            other.begin()
                            held.enter_context(own.pop_all())
                            found.append(other)
        yield found


def _teacher_key(job: Job) -> list:
    """Return the settings that decide what the teacher computes."""
    config = job.settings(StudentConfig)
    return [job.inputs[1], config.control == "shuffled-teacher", *(getattr(config, key) for key in TEACHER_SETTINGS[job.stage])]


def _is_ready(context: JobContext) -> bool:
    if freshness_of(context.results, context.study, context.job, context.graph) == "current" or not _steps_left(context):
        return False
    return all(context.record_of(key).status == "ok" for key in context.job.inputs)  # UserError: missing or stale


def _steps_left(context: JobContext) -> int:
    return context.settings(StudentConfig).steps - checkpoint.finished(context.state / f"{NAME}.safetensors")


def train_together(
    context: JobContext, others: list[JobContext], prepare: Callable[[JobContext, SharedPass], Prepared], device: str
) -> nn.Module:
    """Train the student of `context`, and those of `others` beside it; return that of `context`.

    prepare: builds a job's student, optimizer and training plan, whose loss gets the teacher's
        outputs from the shared pass. It draws weights from the global generator, so it is called
        for one job after the other, before any training starts.

    Raises what `train` raises for `context`. If that is Diverged, the others still train to their
    last step; any other error stops them. If another job raises Diverged or UserError, log one
    line: that job will raise it again when it runs.
    """
    shared = SharedPass([one.job.id for one in (context, *others)])
    student, optimizer, task = prepare(context, shared)
    threads = []
    if others:
        context.details["teacher_shared_with"] = [other.job.id for other in others]
        # No MFU: the device also computes the other students' tokens.
        # No CUDA graph: it cannot wait for the other threads.
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
    context: JobContext, shared: SharedPass, student: nn.Module, optimizer: torch.optim.Optimizer, task: TrainingPlan, device: str
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
    logger.warning("%s: %s", context.job.id, error)


def _once(batch: Callable[[int], dict]) -> Callable[[int], dict]:
    """Return `batch` with a cache, because every student asks for the batch of the same step."""
    kept, making = functools.lru_cache(AHEAD + 3)(batch), threading.Lock()

    def one(step: int) -> dict:
        with making:
            return kept(step)

    return one
