"""Run training stages in forked processes.

The parent has torch loaded and never computes with it. A job costs no import, so a test can afford
hundreds of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

# A child that computes on a pool of threads from before the fork waits for ever.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers  # noqa: F401  (what the stages import, once)
from safetensors import safe_open

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.execute import execute_job
from mobilebert.jobs.freshness import record_file, record_folder
from mobilebert.jobs.record import Record, read_record
from mobilebert.modeling import heads  # noqa: F401
from mobilebert.stages import data, distill, pretrain, transfer
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.training.distributed import processes

MINI = Path(__file__).parents[1] / "workflow" / "mini.yaml"
STAGES = {"data": data, "pretrain": pretrain, "transfer": transfer, "distill": distill}


def mini(**changes):
    """Return the mini study with `changes` to pretrain, transfer and distill that have the key."""
    study, sections = load_study(MINI), {}
    for name in ("pretrain", "transfer", "distill"):
        known = {key: value for key, value in changes.items() if key in type(getattr(study, name)).model_fields}
        sections[name] = getattr(study, name).model_copy(update=known)
    changed = study.model_copy(update=sections)
    object.__setattr__(changed, "_name", "mini")
    return changed


class Runs:
    """The jobs of a study in one results folder, each run in a process of its own."""

    def __init__(self, study, results: Path):
        self.study, self.results, self.graph = study, results, build_graph(study)

    def start(self, key: str, **environment: str) -> int:
        """Fork and return the process id; torchrun's `environment` makes it one of several."""
        if pid := os.fork():
            return pid
        code = 1
        os.environ.update(environment)
        vars(sys.modules["__main__"]).pop("__file__", None)  # else a worker of the corpus imports it, and torch
        try:
            os.dup2(os.open(self.results / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            job = self.graph[key]
            stage = STAGES[job.stage]
            arguments = (job, self.study.name, self.results, self.graph, lambda context: stage.main(context, self.study))
            if environment:
                processes.execute(*arguments, "cpu")
            else:
                execute_job(*arguments)
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def finish(self, key: str) -> None:
        self.wait(key, self.start(key))

    def wait(self, key: str, pid: int) -> None:
        status = os.waitpid(pid, 0)[1]
        assert status == 0, f"{key}: {status}\n{(self.results / 'log').read_text()[-2000:]}"

    def wait_until(self, key: str, pid: int, condition: Callable[[], bool]) -> None:
        """Wait for a condition. Raises AssertionError if the process ends before it holds."""
        while not condition():
            found, status = os.waitpid(pid, os.WNOHANG)
            assert not found, f"{key}: ended too early: {status}\n{(self.results / 'log').read_text()[-2000:]}"
            time.sleep(0.002)

    def start_group(self, key: str, size: int) -> list[int]:
        """Start `size` processes of one job and return their ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
        return [self.start(key, RANK=str(rank), **place) for rank in range(size)]

    def kill(self, key: str, after: float, in_training: bool) -> bool:
        """Kill a job `after` seconds from its start, or from the start of its training. Return
        False if the job ended first."""
        before, pid, begun = self._curves(key), self.start(key), None if in_training else time.monotonic()
        while begun is None or time.monotonic() < begun + after:
            if begun is None and self._curves(key) != before:
                begun = time.monotonic()
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                assert status == 0, f"{key}: {status}\n{(self.results / 'log').read_text()[-2000:]}"
                return False
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    def _curves(self, key: str) -> int | None:
        """Return the inode of the curves' file, which a training renews as it begins or resumes."""
        with contextlib.suppress(FileNotFoundError):
            return (self._state(key) / "curves.jsonl").stat().st_ino

    def _state(self, key: str) -> Path:
        return JobContext(self.graph[key], self.study.name, self.results, self.graph).state

    def record(self, key: str) -> Record:
        return read_record(record_file(self.results, self.study.name, self.graph[key]))

    def is_recorded(self, key: str) -> bool:
        return record_file(self.results, self.study.name, self.graph[key]).exists()

    def outcome(self, key: str):
        """Return the outcome that a kill must not change: weights, metrics and curves."""
        record = self.record(key)
        return record.artefacts["model/model.safetensors"], record.metrics, record.curves

    def forget(self, key: str) -> None:
        shutil.rmtree(record_folder(self.results, self.study.name, self.graph[key]))

    def progress(self, key: str) -> tuple[int, int]:
        """Return (steps reached by the curves, steps saved)."""
        state = self._state(key)
        reached = saved = 0
        if (state / "curves.jsonl").exists():
            lines = (state / "curves.jsonl").read_bytes().split(b"\n")[:-1]  # the last one may be cut short
            reached = max((json.loads(line)["step"] + 1 for line in lines), default=0)
        if (state / "train.safetensors").exists():
            with safe_open(state / "train.safetensors", "np") as stream:
                saved = int(stream.metadata()["step"])
        return reached, saved
