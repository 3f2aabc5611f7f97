"""Show the jobs of a workflow: a bar on a terminal, elsewhere one line for each job that ends."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from mobilebert.util.text import cut

LAST = 15  # lines of a failed job's log
LINE = 200  # characters of such a line


@dataclass(frozen=True)
class _Job:
    rule: str
    name: str
    start: float  # seconds of the clock


class JobBar:
    """The jobs of one run of a workflow: how many ended, which are running, and the time left.

    counts: rule -> how many of its jobs this run has.
    clock: returns the time in seconds.
    """

    def __init__(self, counts: Mapping[str, int], stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self.counts, self.stream, self.clock = counts, stream, clock
        self.total, self.start = sum(counts.values()), clock()
        self.running: dict[int, _Job] = {}
        self.failed: list[_Job] = []
        self.seconds: dict[str, list[float]] = {}  # rule -> how long each finished job took
        # A terminal of unknown size has no lines, and tqdm draws nothing on it.
        self.is_terminal = stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 1
        self.bar = tqdm(
            total=self.total,
            file=stream,
            bar_format=" ",
            leave=False,
            dynamic_ncols=True,
            disable=not self.is_terminal,
        )

    @property
    def done(self) -> int:
        """Return how many jobs ended well."""
        return sum(map(len, self.seconds.values()))

    def begin(self, number: int, rule: str, name: str) -> None:
        """Note that a job has started; `number` names it. A retry has not failed."""
        self.failed = [job for job in self.failed if (job.rule, job.name) != (rule, name)]
        self.running[number] = _Job(rule, name, self.clock())
        self.refresh()

    def end(self, number: int) -> None:
        """Note that a job has ended well, and print its line if there is no terminal."""
        if job := self.running.pop(number, None):
            seconds = self.clock() - job.start
            self.seconds.setdefault(job.rule, []).append(seconds)
            if not self.is_terminal:
                self.say(f"[{self.done}/{self.total}] {job.name}: {duration(seconds)} ({self._times()})")
        self.refresh()

    def fail(self, number: int, rule: str, logs: Iterable[str]) -> None:
        """Print the name of a job that failed, and the path and the last lines of its log."""
        job = self.running.pop(number, _Job(rule, rule, self.clock()))
        self.failed.append(job)
        logs = list(logs)
        if not logs:
            self.say(f"failed: {job.name}")
        for log in logs:
            self.say(f"failed: {job.name}; log: {log}")
            lines = Path(log).read_text(errors="replace").splitlines() if Path(log).is_file() else []
            self.say(*(f"    {cut(line, LINE)}" for line in lines[-LAST:]))

    def say(self, *lines: str) -> None:
        """Print lines above the bar."""
        self.bar.clear()
        for line in lines:
            print(line, file=self.stream, flush=True)
        self.refresh()

    def refresh(self) -> None:
        """Draw the bar again. Outside a terminal there is none."""
        if self.is_terminal:
            names = ", ".join(job.name for job in self.running.values())
            text = f"{self._times()}: {names}".replace("{", "{{").replace("}", "}}")
            self.bar.bar_format = f"{{n_fmt}}/{{total_fmt}} jobs |{{bar:20}}| {text}"
            self.bar.n = self.done
            self.bar.refresh()

    def close(self) -> None:
        """Take the bar away, and print how many jobs ended in what time."""
        self.bar.close()
        failed = f"; failed: {', '.join(job.name for job in self.failed)}" if self.failed else ""
        spent = duration(self.clock() - self.start)
        print(f"{self.done} of {self.total} jobs in {spent}{failed}", file=self.stream, flush=True)

    def seconds_left(self) -> float | None:
        """Return about how long the rest takes; None before the first job and after the last one.

        A job is taken to last as long as its rule's finished jobs did on average, or as all
        finished jobs did if its rule has none. The run goes on with as many jobs at once as it had
        on average.
        """
        spent = [one for seconds in self.seconds.values() for one in seconds]
        now = self.clock()
        if not spent or now == self.start or self.done == self.total:
            return None
        mean = sum(spent) / len(spent)
        begun = Counter(job.rule for job in (*self.running.values(), *self.failed))
        left = 0.0
        for rule, count in self.counts.items():
            finished = self.seconds.get(rule, [])
            each = sum(finished) / len(finished) if finished else mean
            left += each * (count - len(finished) - begun[rule])
            left += sum(max(each - (now - job.start), 0) for job in self.running.values() if job.rule == rule)
        busy = sum(spent) + sum(now - job.start for job in self.running.values())
        return left / max(busy / (now - self.start), 1)

    def _times(self) -> str:
        spent, left = duration(self.clock() - self.start), self.seconds_left()
        return f"{spent} so far" if left is None else f"{spent} so far, about {duration(left)} left"


def duration(seconds: float) -> str:
    """Return seconds as minutes and seconds, from an hour on with the hours: 1:02:03."""
    return tqdm.format_interval(round(seconds))
