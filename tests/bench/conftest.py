"""Measure versions of the same work side by side.

`make bench` times them and judges the ratios, on a machine that does nothing else. CI passes
--benchmark-disable: each version runs once, the results are compared, and no time is judged, since
other programs on a shared machine move a ratio by more than a regression does.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Samples = dict[str, list[float]]


class Rounds:
    """Interleaved rounds: each round runs each version once, so that a busy machine slows all.

    The raw samples, and who is compared with whom, go into pytest-benchmark's file as `extra_info`,
    from which `mobilebert compare` reads them.
    """

    def __init__(self, timed: bool, benchmark: BenchmarkFixture) -> None:
        self.timed, self.benchmark = timed, benchmark

    def run(
        self,
        versions: dict[str, Callable[[int], Any]],
        rounds: int,
        warmup: int = 1,
    ) -> tuple[Samples, dict[str, list]]:
        """Return each version's processor seconds, without warm-up, and what each call returned.

        A version is called with the number of the round.
        """
        samples: Samples = {name: [] for name in versions}
        results: dict[str, list] = {name: [] for name in versions}

        def run_all() -> None:
            for index in range(warmup + rounds if self.timed else 1):
                for name, version in versions.items():
                    start = time.process_time()
                    results[name].append(version(index))
                    samples[name].append(time.process_time() - start)

        self.benchmark.pedantic(run_all, rounds=1)
        kept = {name: taken[warmup:] for name, taken in samples.items()}
        self.benchmark.extra_info.update(samples=kept, peers=[])
        return kept, results

    def judge(self, samples: Samples, peer: str, ours: str, least: float) -> None:
        """Fail if `peer` takes less than `least` times as long as `ours`. The fastest round of each
        counts: other work disturbs it least. The message has the raw samples."""
        self.benchmark.extra_info["peers"].append([peer, ours])
        if self.timed:
            ratio = min(samples[peer]) / min(samples[ours])
            print(f"{peer} / {ours}: {ratio:.2f}, at least {least}")
            assert ratio >= least, (ratio, samples)


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> bool:
    """Return whether times are measured: only without --benchmark-disable."""
    return not request.config.getoption("benchmark_disable")


@pytest.fixture
def rounds(timed: bool, benchmark: BenchmarkFixture) -> Rounds:
    return Rounds(timed, benchmark)
