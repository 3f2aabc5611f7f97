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

    The first step, which compiles and warms caches, is counted apart, unless it is the only one.

    flops_per_token, peak: of the model, and of all devices together in FLOP/s; without both there is no MFU.
    """

    def __init__(self, flops_per_token: float | None, peak: float | None):
        self.share = flops_per_token / peak if flops_per_token and peak else None
        self.begin = time.monotonic()
        self.steps, self.tokens, self.waited = 0, 0, 0.0

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

    def step(self, tokens: int) -> None:
        """A step of so many tokens has ended."""
        self.steps += 1
        self.tokens += tokens
        if self.steps == 1:
            self.first = (time.monotonic(), self.tokens, self.waited)

    def figures(self) -> dict[str, float]:
        """tokens_per_second, data_wait_share, first_step_seconds and, where it is known, mfu. Needs a step."""
        start, tokens, waited = self.first if self.steps > 1 else (self.begin, 0, 0.0)
        seconds = time.monotonic() - start
        found = {
            "tokens_per_second": (self.tokens - tokens) / seconds,
            "data_wait_share": (self.waited - waited) / seconds,
            "first_step_seconds": self.first[0] - self.begin,
        }
        return found | ({"mfu": found["tokens_per_second"] * self.share} if self.share else {})

    def __str__(self) -> str:
        figures = self.figures()
        parts = [f"{figures['tokens_per_second']:.0f} tokens/s", f"data wait {figures['data_wait_share']:.1%}"]
        return ", ".join([*parts, *([f"MFU {figures['mfu']:.1%}"] if "mfu" in figures else [])])
