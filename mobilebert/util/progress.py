"""Show progress (a bar on a terminal, a line every ten seconds in a log) and measure speed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

# Start of CUDA's device name -> dense bf16 FLOP/s, from NVIDIA's data sheets, halved if they count
# sparsity.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: str) -> float | None:
    """Return the dense bf16 peak of a device in FLOP/s; None for a CPU or a GPU not in PEAKS."""
    if device != "cuda":
        return None
    import torch  # not at the top: a bar needs no torch

    name = torch.cuda.get_device_name()
    return next((peak for start, peak in PEAKS.items() if name.startswith(start)), None)


def bar(total: int, what: str, done: int = 0, unit: str = "step", silent: bool = False) -> tqdm:
    """Return a bar with rate and ETA on standard error; it prints nothing if `silent`.

    done: how many of `total` were finished before. On a terminal a bar inside another is cleared
    when it ends.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        leave=None,
        mininterval=0.2 if terminal else 10.0,
        position=None if terminal else 0,  # in a log a bar cannot move up a line
        dynamic_ncols=True,
        smoothing=0.1,
        file=sys.stderr,
        disable=silent,
    )


class Speed:
    """Tokens a second, model FLOPs utilisation (MFU) and the share of time spent waiting for data.

    The first step compiles and warms caches, so the figures leave it out unless it is the only one.
    The figures of a schedule's stage leave out that stage's first step by the same rule. FLOPs are
    those of `modeling.cost`. They leave out the extra work of kernels, such as attention maps that
    are kept, or scores that fused attention computes again. Padding counts in tokens and in FLOPs,
    because it is computed.

    peak: FLOP/s of all devices together. There is no MFU without it or without the steps' FLOPs.
    """

    def __init__(self, peak: float | None):
        self.peak, self.begin, self.waited = peak, time.monotonic(), 0.0
        self.whole = _Span(self.begin, 0.0)
        self.stages: dict[int, _Span] = {}

    @property
    def steps(self) -> int:
        """Return the number of steps so far."""
        return self.whole.steps

    @property
    def seconds(self) -> float:
        """Return the seconds since this object was created."""
        return time.monotonic() - self.begin

    def waiting(self, batches: Iterable) -> Iterator:
        """Yield the same batches and count the time until each one arrives."""
        batches = iter(batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield batch

    def step(self, tokens: int, flops: float | None = None, stage: int | None = None) -> None:
        """Count a step that has ended. stage: that of the schedule, if it has stages."""
        spans = [self.whole]
        if stage is not None:
            spans.append(self.stages.setdefault(stage, _Span(*self.whole.end)))
        now = time.monotonic()
        if not self.steps:
            self.first_seconds = now - self.begin
        for span in spans:
            span.step(tokens, flops or 0.0, now, self.waited)

    def figures(self) -> dict:
        """Return tokens_per_second, data_wait_share, first_step_seconds and, if known, mfu.

        If steps named a stage, `stages` lists for each stage its number (`stage`), `steps` and the
        same figures without first_step_seconds. Call it after at least one step.
        """
        found = self.whole.figures(self.peak) | {"first_step_seconds": self.first_seconds}
        stages = [{"stage": stage, "steps": span.steps} | span.figures(self.peak) for stage, span in self.stages.items()]
        return found | ({"stages": stages} if stages else {})

    def __str__(self) -> str:
        figures = self.whole.figures(self.peak)
        parts = [f"{figures['tokens_per_second']:.0f} tokens/s", f"data wait {figures['data_wait_share']:.1%}"]
        return ", ".join([*parts, *([f"MFU {figures['mfu']:.1%}"] if "mfu" in figures else [])])


class _Span:
    """Consecutive steps, with their tokens and FLOPs; the first counts only if it is alone.

    start, end: a moment, and the seconds waited for data until then.
    """

    def __init__(self, moment: float, waited: float):
        self.start = self.end = (moment, waited)
        self.steps, self.tokens, self.flops = 0, 0, 0.0

    def step(self, tokens: int, flops: float, moment: float, waited: float) -> None:
        if self.steps == 1:
            self.start, self.tokens, self.flops = self.end, 0, 0.0
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.end = (moment, waited)

    def figures(self, peak: float | None) -> dict[str, float]:
        seconds, waited = (after - before for before, after in zip(self.start, self.end, strict=True))
        found = {"tokens_per_second": self.tokens / seconds, "data_wait_share": waited / seconds}
        return found | ({"mfu": self.flops / seconds / peak} if peak and self.flops else {})
