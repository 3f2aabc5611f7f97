"""Measure versions of the same work side by side.

`make bench` times them and judges the ratios, on a machine that does nothing else. CI passes
--benchmark-disable: each version runs once, the results are compared, and no time is judged, since
other programs on a shared machine move a ratio by more than a regression does.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

Samples = dict[str, list[float]]


class Rounds:
    """Interleaved rounds: each round runs each version once, so that a busy machine slows all."""

    def __init__(self, timed: bool) -> None:
        self.timed = timed

    def run(
        self,
        versions: dict[str, Callable[[int], Any]],
        rounds: int,
        warmup: int = 1,
        clock: Callable[[], float] = time.process_time,
    ) -> tuple[Samples, dict[str, list]]:
        """Return each version's processor seconds, without warm-up, and what each call returned.

        A version is called with the number of the round.
        """
        samples: Samples = {name: [] for name in versions}
        results: dict[str, list] = {name: [] for name in versions}
        for index in range(warmup + rounds if self.timed else 1):
            for name, version in versions.items():
                start = time.process_time()
                results[name].append(version(index))
                samples[name].append(time.process_time() - start)
        return {name: taken[warmup:] for name, taken in samples.items()}, results

    def judge(self, samples: Samples, peer: str, ours: str, least: float) -> None:
        """Fail if `peer` takes less than `least` times as long as `ours`. The fastest round of each
        counts: other work disturbs it least. The message has the raw samples."""
        if self.timed:
            ratio = min(samples[peer]) / min(samples[ours])
            print(f"{peer} / {ours}: {ratio:.2f}, at least {least}")
            assert ratio >= least, (ratio, samples)


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> Rounds:
    return Rounds(timed=not request.config.getoption("benchmark_disable"))
