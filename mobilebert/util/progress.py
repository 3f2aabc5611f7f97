"""Progress bars: tqdm on a terminal, a line every ten seconds in a log file; and how fast a training goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

# Dense bf16 FLOP/s, by the start of the device's name as CUDA gives it; NVIDIA's data sheets, halved where they count sparsity.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None for a CPU and for a GPU that the table does not know."""
    if device != "cuda":
        return None
    import torch  # not where a bar alone is wanted

    name = torch.cuda.get_device_name()
    return next((peak for start, peak in PEAKS.items() if name.startswith(start)), None)


def bar(total: int, what: str, done: int = 0, unit: str = "step", silent: bool = False) -> tqdm:
    """A bar with rate and ETA on standard error, or none; `done` of `total` were finished before. A bar inside another is
    cleared when it ends, on a terminal."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        leave=None,
        mininterval=0.2 if terminal else 10.0,
        position=None if terminal else 0,  # a log has no second line to go up from
        dynamic_ncols=True,
        smoothing=0.1,
        file=sys.stderr,
        disable=silent,
    )


class Speed:
    """Tokens a second, model FLOPs utilisation (MFU), share of the time that steps waited for data.

    The first step, which compiles and warms caches, is counted apart, unless it is the only one; so is the first of each stage
    of a schedule. FLOPs are the model's (`modeling.cost`), whatever the kernels compute beside them: attention maps that are
    kept, a fused attention that makes its scores again. Padding counts in tokens and in FLOPs, as it is computed.

    peak: of all devices together in FLOP/s; without it, or where the steps' FLOPs are not known, there is no MFU.
    """

    def __init__(self, peak: float | None):
        self.peak, self.begin, self.waited = peak, time.monotonic(), 0.0
        self.whole = _Span(self.begin, 0.0)
        self.stages: dict[int, _Span] = {}

    @property
    def steps(self) -> int:
        return self.whole.steps

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return time.monotonic() - self.begin

    def waiting(self, batches: Iterable) -> Iterator:
        """The same batches, the time until each one is there counted."""
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
        """A step of so many tokens and FLOPs has ended; `stage`: of the schedule, where that has stages."""
        spans = [self.whole]
        if stage is not None:
            spans.append(self.stages.setdefault(stage, _Span(*self.whole.end)))
        now = time.monotonic()
        if not self.steps:
            self.first_seconds = now - self.begin
        for span in spans:
            span.step(tokens, flops or 0.0, now, self.waited)

    def figures(self) -> dict:
        """tokens_per_second, data_wait_share, first_step_seconds and, where it is known, mfu. Needs a step.

        `stages`, where there are some: for each of which a step was seen its number, `steps` and, but for first_step_seconds,
        the same figures.
        """
        found = self.whole.figures(self.peak) | {"first_step_seconds": self.first_seconds}
        stages = [{"stage": stage, "steps": span.steps} | span.figures(self.peak) for stage, span in self.stages.items()]
        return found | ({"stages": stages} if stages else {})

    def __str__(self) -> str:
        figures = self.whole.figures(self.peak)
        parts = [f"{figures['tokens_per_second']:.0f} tokens/s", f"data wait {figures['data_wait_share']:.1%}"]
        return ", ".join([*parts, *([f"MFU {figures['mfu']:.1%}"] if "mfu" in figures else [])])


class _Span:
    """Steps in a row and their tokens and FLOPs, without the first where there are others.

    start, end: each a moment and the seconds waited for data until then.
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
