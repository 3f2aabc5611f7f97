"""Tell where on its schedule a training is, and when it is over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from mobilebert.training.distributed.processes import World
from mobilebert.training.plan import TrainingPlan
from mobilebert.util.progress import Speed


class Clock:
    """The place of a training on its schedule: the step, or the elapsed share of `max_minutes`."""

    def __init__(self, plan: TrainingPlan, used: float, speed: Speed, group: World):
        """used: seconds of training before it was resumed."""
        self.plan, self.used, self.speed, self.group = plan, used, speed, group

    @property
    def seconds(self) -> float:
        """Return the seconds of training so far, with those before it was resumed."""
        return self.used + self.speed.seconds

    def share(self) -> float:
        """Return the elapsed share of `max_minutes`, the same in all processes."""
        assert self.plan.max_minutes is not None
        return self.group.agree(self.seconds) / (60 * self.plan.max_minutes)

    def place(self, step: int) -> int:
        """Return the step of the schedule, from 0 to steps - 1."""
        return min(int(self.share() * self.plan.steps), self.plan.steps - 1) if self.plan.max_minutes else step

    def steps(self, done: int) -> int:
        """Return how many steps there will be in all, estimated from the `done` ones."""
        return round(done * max(1.0, 60 * self.plan.max_minutes / self.seconds)) if self.plan.max_minutes else self.plan.steps

    def steps_from(self, start: int) -> Iterable[int]:
        """Return the steps that are left after `start` of them; without end if time decides."""
        if start and self.is_over(start - 1):
            return range(0)
        return itertools.count(start) if self.plan.max_minutes else range(start, self.plan.steps)

    def is_over(self, step: int) -> bool:
        """Return whether `step` was the last one."""
        return self.share() >= 1 if self.plan.max_minutes else step + 1 == self.plan.steps
