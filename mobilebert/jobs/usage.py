"""Sample what a training uses of its machine: processor, memory and GPUs.

The names of the values are those of MLflow's system metrics. The files are Linux's; another system
has no values.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MEGABYTE = 1_000_000  # bytes, as in MLflow
INTERVAL_S = 10.0  # between two samples, as in MLflow
MOST = 400  # samples kept of a value; then every second one goes and the interval doubles
QUERY = ("index", "utilization.gpu", "memory.used", "power.draw")
PROC = Path("/proc")

Usage = dict[str, list[tuple[float, float]]]  # name -> (seconds since the start, value)


@contextlib.contextmanager
def sampled(usage: Usage, interval: float = INTERVAL_S) -> Iterator[None]:
    """Add samples to `usage` while the block runs, the last one at its end."""
    stop, begun, ticks = threading.Event(), time.monotonic(), [_ticks()]

    def sample() -> None:
        ticks.append(_ticks())
        before, now = ticks[-2:]
        values = _memory() | _gpus()
        if before and now and now[1] > before[1]:
            values["cpu_utilization_percentage"] = 100 * (now[0] - before[0]) / (now[1] - before[1])
        del ticks[:-1]
        for name, value in values.items():
            usage.setdefault(name, []).append((round(time.monotonic() - begun, 1), round(value, 1)))

    def work() -> None:
        wait = interval
        while not stop.wait(wait):
            sample()
            if max(map(len, usage.values()), default=0) > MOST:
                wait *= 2
                for name in usage:
                    usage[name] = usage[name][::2]

    thread = threading.Thread(target=work, daemon=True, name="usage")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sample()


def _ticks() -> tuple[int, int] | None:
    """Return the busy and all ticks of all cores since the machine started."""
    with contextlib.suppress(OSError, ValueError):
        each = [int(text) for text in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(each) - each[3] - each[4], sum(each)  # without idle and waiting for a disk
    return None


def _memory() -> dict[str, float]:
    """Return the memory of the machine that is in use, and that of this process."""
    found = {}
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        lines = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        total, free = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        found["system_memory_usage_megabytes"] = (total - free) * 1024 / MEGABYTE
        found["system_memory_usage_percentage"] = 100 * (total - free) / total
        pages = int((PROC / "self" / "statm").read_text().split()[1])
        found["process_memory_usage_megabytes"] = pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
    return found


def _gpus() -> dict[str, float]:
    """Return the use of the GPUs of this process; nothing if torch uses none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # another thread may be importing torch
    if cuda is None or not cuda.is_initialized():
        return {}
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", *([f"--id={own}"] if own else [])]
    found = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=INTERVAL_S, check=True)
        for line in done.stdout.splitlines():
            index, *values = (text.strip() for text in line.split(","))
            for kind, text in zip(
                ("utilization_percentage", "memory_usage_megabytes", "power_usage_watts"), values, strict=False
            ):
                with contextlib.suppress(ValueError):  # "[N/A]"
                    unit = (1 << 20) / MEGABYTE if kind.startswith("memory") else 1  # nvidia-smi prints MiB
                    found[f"gpu_{index}_{kind}"] = float(text) * unit
    return found
