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

import torch
from torch import nn

from mobilebert.config import Study
from mobilebert.errors import UserError
from mobilebert.jobs import Job, scope
from mobilebert.locks import lock, lock_of
from mobilebert.records import Diverged, Run, state_of
from mobilebert.training import checkpoint
from mobilebert.training.batches import AHEAD
from mobilebert.training.loop import Task, train
from mobilebert.training.parallel import world

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
        self.asked = dict.fromkeys(members, (-1, 0))  # (step, micro-batch)
        self.change = threading.Condition()
        self.worker: str | None = None
        self.stopped = False
        self.key = self.kept = None
        self.takers = 0

    def get(self, member: str, step: int, make: Callable[[], object]):
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
def siblings(run: Run, study: Study) -> Iterator[list[Run]]:
    """The jobs of its stage whose students can be trained beside that of `run`, their locks held: those of a bare `snakemake`
    with the same teacher and batches (see `_lesson`), whose inputs are there, whose own record is not, and that no process makes.

    None for one of torchrun's processes, who would have to agree on them, and where a time budget makes the schedule: the
    others' time would count.
    """
    with contextlib.ExitStack() as held:
        found: list[Run] = []
        shares = getattr(study, run.job.stage).share_teacher
        if shares and world().size == 1 and not run.job.config["max_minutes"] and _steps_left(run):
            for key in scope(study, run.graph):
                job = run.graph[key]
                if job.stage == run.job.stage and key != run.job.id and _lesson(job) == _lesson(run.job):
                    other = Run(job, run.study, run.results, run.graph)
                    with contextlib.suppress(UserError), contextlib.ExitStack() as own:
                        own.enter_context(lock(lock_of(other.state), "another process makes it", leader=run.job.id))
                        if _is_ready(other):
                            other.begin()
                            held.enter_context(own.pop_all())
                            found.append(other)
        yield found


def _lesson(job: Job) -> list:
    """What the teacher computes, and from what."""
    return [job.inputs[1], job.config["control"] == "shuffled-teacher", *(job.config[key] for key in LESSONS[job.stage])]


def _is_ready(run: Run) -> bool:
    if state_of(run.results, run.study, run.job, run.graph) == "current" or not _steps_left(run):
        return False
    return all(run.record_of(key).status == "ok" for key in run.job.inputs)  # UserError: missing or stale


def _steps_left(run: Run) -> int:
    return run.job.config["steps"] - checkpoint.finished(run.state / f"{NAME}.safetensors")


def train_together(run: Run, others: list[Run], prepare: Callable[[Run, SharedPass], Prepared], device: str) -> nn.Module:
    """Train the student of `run`, and those of `others` beside it; returns the first.

    prepare: makes a run's student, optimizer and task; the task's loss asks the shared pass for the teacher's outputs. It draws
    weights, so it is called for one run after the other, before any trains; the training draws nothing.

    Raises what `train` raises for `run`. The others end where it diverges too, each at its last step; any other error of it
    stops them. Of an error of theirs a line is printed: their own jobs will meet it again.
    """
    shared = SharedPass([one.job.id for one in (run, *others)])
    student, optimizer, task = prepare(run, shared)
    threads = []
    if others:
        run.details["teacher_shared_with"] = [other.job.id for other in others]
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
        train(run, student, optimizer, task, NAME, device)
    except Diverged:
        raise
    except BaseException:
        shared.stop()
        raise
    finally:
        shared.leave(run.job.id)
        for thread in threads:
            thread.join()
    return student


def _follow(run: Run, shared: SharedPass, student: nn.Module, optimizer: torch.optim.Optimizer, task: Task, device: str) -> None:
    try:
        train(run, student, optimizer, task, NAME, device)
    except (Diverged, UserError) as error:
        _tell(run, error)
    except Stopped:
        pass
    finally:
        shared.leave(run.job.id)


def _tell(run: Run, error: Exception) -> None:
    print(f"mobilebert: {run.job.id}: {error}", file=sys.stderr)


def _once(batch: Callable[[int], dict]) -> Callable[[int], dict]:
    """The same, each step's batch made once while the students in step may ask for it."""
    kept, making = functools.lru_cache(AHEAD + 3)(batch), threading.Lock()

    def one(step: int) -> dict:
        with making:
            return kept(step)

    return one
