"""Time .tflite files on Android phones with LiteRT's own benchmark program."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from mobilebert.deployment.devices import TIMED_OUT, Adb, abi_of
from mobilebert.deployment.export import INPUTS
from mobilebert.util.errors import UserError
from mobilebert.util.text import cut

THREADS = (1, 2, 4)  # the paper has 4, the big cores of a Pixel 4
WARMUP = 5
LONGEST_S = 600  # the program starts no run of the model after this
ENDED_S = 700  # the phone ends the program, which loads, warms up and may be within a slow run
RANGES = {"input_ids": (0, 99), "attention_mask": (1, 1), "token_type_ids": (0, 0)}  # least and greatest value
COUNTED = re.compile(r"^(?:INFO: )?count=(\d+) (.*)$", re.MULTILINE)
VALUE = re.compile(r"\b(first|min|max|avg|std|p5|median|p95)=([0-9.e+]+)")
SUMMARY = re.compile(
    r"Inference timings in us: Init: ([0-9.e+]+), First inference: ([0-9.e+]+), .*Inference \(avg\): ([0-9.e+]+)"
)
MEMORY = re.compile(r"overall=([0-9.]+)")
HEADS = ("phone", "model", "threads", "p50 ms", "p95", "mean", "min", "std", "runs", "start ms", "memory MB")


def measure(models: list[Path], phones: list[str | None], binary: Path, rounds: int, adb: Adb | None = None) -> dict[str, Any]:
    """Return the times of each file on each phone with 1, 2 and 4 threads.

    phones: serials; None for the only phone. binary: LiteRT's benchmark_model for the phones.

    Returns {"rounds", "phones": [{"serial", "model", "android", "abis", "models"}]}; "models" has
    what `parse` returns by file and number of threads. The times are those that the program prints:
    it keeps no samples, and old versions print no median (None). Nothing shows that a phone was
    cool and alone.

    Raises UserError in one line, and leaves no file on a phone, if anything is missing or fails.
    """
    abi = abi_of(binary)
    shapes = {model: inputs_of(model) for model in models}
    client = adb or Adb()
    ready = [client.phone(serial) for serial in phones]
    facts = [phone.facts() for phone in ready]
    for phone, known in zip(ready, facts, strict=True):
        if abi not in known["abis"].split(","):
            raise UserError(f"{binary}: is built for {abi}; android:{phone.serial} runs {known['abis']}")
    found = []
    for phone, known in zip(ready, facts, strict=True):
        with phone, tempfile.TemporaryDirectory(prefix="phone-") as folder:
            program = phone.push(binary, "benchmark_model")
            times: dict[str, dict[str, Any]] = {}
            for number, (model, inputs) in enumerate(shapes.items()):
                place = phone.push(model, f"model-{number}.tflite")
                for threads in THREADS:
                    log = f"{number}-{threads}.log"
                    code = phone.run(program, _arguments(place, inputs, threads, rounds), log, ENDED_S)
                    phone.pull(log, Path(folder, log))
                    text = Path(folder, log).read_text(encoding="utf-8", errors="replace")
                    times.setdefault(str(model), {})[str(threads)] = parse(text, code, f"android:{phone.serial}: {model}")
            found.append({**known, "models": times})
    return {"rounds": rounds, "phones": found}


def inputs_of(model: Path) -> list[tuple[str, list[int]]]:
    """Return the name, one of ours, and the shape of each input of a .tflite file, in its order.

    Raises UserError if LiteRT, which reads the file, is missing, or for another input.
    """
    from mobilebert.deployment.engines import lite_rt
    from mobilebert.deployment.engines.table import ENGINES

    ENGINES["litert"].check_installed()
    shapes = lite_rt.LiteRtModel(model, 1).input_shapes()
    for name, _ in shapes:
        if name not in INPUTS:
            raise UserError(f"{model}: has the input {name}; a phone is given {', '.join(INPUTS)}")
    return shapes


def _arguments(place: str, inputs: list[tuple[str, list[int]]], threads: int, rounds: int) -> list[str]:
    """Return the program's flags. Without ranges it would draw ids beyond the token types."""
    return [
        f"--graph={place}",
        f"--num_threads={threads}",
        f"--num_runs={rounds}",
        f"--warmup_runs={WARMUP}",
        f"--max_secs={LONGEST_S}",
        "--use_xnnpack=true",
        f"--input_layer={','.join(name for name, _ in inputs)}",
        f"--input_layer_shape={':'.join(','.join(map(str, shape)) for _, shape in inputs)}",
        f"--input_layer_value_range={':'.join(f'{name},{RANGES[name][0]},{RANGES[name][1]}' for name, _ in inputs)}",
    ]


def parse(log: str, code: int, where: str) -> dict[str, float | int | None]:
    """Return what the program printed: runs, milliseconds of p50, p95, mean, min, max, std and cold
    start (from the file to the first output), and memory in MB.

    code: the program's exit code. Raises UserError with the last line if the program failed or
    printed no result.
    """
    counted, summary = COUNTED.findall(log), SUMMARY.search(log)
    if code or not counted or not summary:
        lines = [line for line in log.splitlines() if line.strip()]
        last = cut(lines[-1], 200) if lines else "it printed nothing"
        ended = f"did not end within {ENDED_S} seconds" if code in TIMED_OUT else f"ended with exit code {code}"
        raise UserError(f"{where}: the benchmark {ended if code else 'printed no result'} ({last})")
    runs, rest = counted[-1]  # the first one counts the warm-up
    us = {name: float(value) for name, value in VALUE.findall(rest)}
    memory = MEMORY.search(log, summary.end())

    def ms(name: str) -> float | None:
        return us[name] / 1e3 if name in us else None

    found: dict[str, float | int | None] = {"runs": int(runs), "p50": ms("median"), "p95": ms("p95")}
    found |= {"mean": float(summary[3]) / 1e3, "min": ms("min"), "max": ms("max"), "std": ms("std")}
    return found | {
        "cold_start_ms": (float(summary[1]) + float(summary[2])) / 1e3,
        "memory_mb": float(memory[1]) if memory else None,
    }


def table(found: dict[str, Any]) -> str:
    """Return the times as a table, a line a model and number of threads."""
    rows = [list(HEADS)]
    for phone in found["phones"]:
        for model, times in phone["models"].items():
            for threads, one in times.items():
                keys = ("p50", "p95", "mean", "min", "std", "runs", "cold_start_ms", "memory_mb")
                rows.append([f"{phone['model']} ({phone['serial']})", model, threads, *(_text(one[key]) for key in keys)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def _text(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"
