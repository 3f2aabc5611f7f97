"""Print a measurement of latency as a table, with what explains the ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

QUIET = (
    "for a quiet run stop other programs (top shows them) or take a machine alone (Slurm: srun --exclusive), "
    "then run the command again"
)
HEADS = (
    "model",
    "engine",
    "p50 ms",
    "p90",
    "p99",
    "time ratio",
    "GFLOP",
    "FLOPs ratio",
    "GFLOP/s",
    "of peak",
    "int8",
    "operators",
    "file MB",
    "memory MiB",
    "start ms",
    "error",
)
LOAD = {"p50 ms", "p90", "p99", "time ratio", "GFLOP/s", "of peak", "start ms"}  # a void run has no such numbers


def table(found: dict[str, Any], specs: list[dict]) -> str:
    """Return the table, the machine's peaks, and a line for each ratio; void numbers are "void".

    found: from `latency.measure`. specs: its specs, each with "model", the name in the first
    column. A ratio compares with the first model on the same engine.
    """
    is_void, peaks = found["validity"] != "ok", found["peaks"]
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    rows: list[list[str]] = [[*HEADS]]
    for spec in specs:
        values = _values(found, spec, specs)
        rows.append([_cell(head, value, is_void) for head, value in zip(HEADS, values, strict=True)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{found['length']} tokens, batch {found['batch']}, {threads}, {found['rounds']} rounds after {found['warmup']}; "
        f"{found['processor']['cpu']} ({found['processor']['isa']})"
    ]
    if peaks and not is_void:
        lines.append(
            f"measured peaks: {peaks['gflops']:.1f} GFLOP/s of float32 matrix products, "
            f"{peaks['gb_per_s']:.1f} GB/s of memory reads"
        )
    lines.append("")
    for row in rows:
        cells = [text.ljust(width) if place < 2 else text.rjust(width) for place, (text, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    reasons = [] if is_void else [*(_reason(found, spec, specs) for spec in specs), *_gains(found, specs)]
    if reasons := [reason for reason in reasons if reason]:
        lines += ["", *reasons]
    return "\n".join(lines)


def of_record(metrics: Mapping[str, float | None], details: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict]]:
    """Return what `table` takes, from the metrics and details of a record of the stage."""
    specs = []
    models = {}
    for name, facts in details["models"].items():
        model, _, engine = name.rpartition("/")
        specs.append({"name": name, "model": model, "engine": engine})
        models[name] = {**facts, **{key: metrics[f"{name}:{key}_ms"] for key in ("p50", "p90", "p99")}}
    return {**details, "models": models}, specs


def profile(found: dict[str, Any], specs: list[dict]) -> str:
    """Return the operations that take the time of each model, the slowest first."""
    lines = []
    for spec in specs:
        model = found["models"][spec["name"]]
        lines.append(f"{spec['model']}, {spec['engine']}:")
        owned = model["owners"]
        if found["validity"] != "ok":
            lines.append("  void, as the times")
        elif not owned:
            lines.append("  this engine does not tell where its time goes")
        else:
            whole = sum(us for _, _, us in owned)
            lines += [f"  {us / 1e3:8.2f} ms {us / whole:5.0%}  {calls:4d} x {op}" for op, calls, us in owned]
    return "\n".join(lines)


def _first(spec: dict, specs: list[dict]) -> dict:
    """Return the first spec of the same engine."""
    return next(one for one in specs if one["engine"] == spec["engine"])


def _ratio(found: dict, spec: dict, specs: list[dict], key: str) -> float | None:
    mine, base = (found["models"][one["name"]][key] for one in (spec, _first(spec, specs)))
    return mine / base if mine and base else None


def _gains(found: dict, specs: list[dict]) -> list[str]:
    """Return a line for each model that ran on several engines: each engine beside the first."""
    lines = []
    for model in dict.fromkeys(spec["model"] for spec in specs):
        first, *others = [spec for spec in specs if spec["model"] == model]
        base = found["models"][first["name"]]["p50"]
        known = [(spec["engine"], found["models"][spec["name"]]["p50"]) for spec in others]
        if gains := [f"{engine} is {base / time:.2f} times" for engine, time in known if base and time]:
            lines.append(f"{model}: {', '.join(gains)} as fast as {first['engine']}")
    return lines


def _gflops(found: dict, spec: dict) -> float | None:
    """Return the FLOPs a second, in 10^9, at the median."""
    model = found["models"][spec["name"]]
    return model["flops"] / model["p50"] / 1e6 if model["flops"] and model["p50"] else None


def _values(found: dict, spec: dict, specs: list[dict]) -> list:
    model, speed, peaks = found["models"][spec["name"]], _gflops(found, spec), found["peaks"]
    return [
        spec["model"],
        spec["engine"],
        model["p50"],
        model["p90"],
        model["p99"],
        _ratio(found, spec, specs, "p50"),
        model["flops"] and model["flops"] / 1e9,
        _ratio(found, spec, specs, "flops"),
        speed,
        speed and peaks and speed / peaks["gflops"],
        model["int8_flops_share"],
        model["operators"],
        model["bytes"] and model["bytes"] / 1e6,
        model["memory_mib"],
        model["cold_start_ms"],
        model["error"],
    ]


FORMATS: dict[str, Callable[[Any], str]] = {
    "p50 ms": "{:.2f}".format,
    "p90": "{:.2f}".format,
    "p99": "{:.2f}".format,
    "time ratio": "{:.2f}".format,
    "FLOPs ratio": "{:.2f}".format,
    "GFLOP": "{:.2f}".format,
    "GFLOP/s": "{:.1f}".format,
    "of peak": "{:.0%}".format,
    "int8": "{:.1%}".format,
    "file MB": "{:.1f}".format,
    "memory MiB": "{:.0f}".format,
    "start ms": "{:.0f}".format,
    "error": "{:.1e}".format,
}


def _cell(head: str, value: Any, is_void: bool) -> str:
    if is_void and head in LOAD:
        return "void"
    if value is None or value == {}:
        return "-"
    return value if isinstance(value, str) else FORMATS.get(head, str)(value)


def _reason(found: dict, spec: dict, specs: list[dict]) -> str | None:
    """Return a sentence on a ratio of times beside the ratio of FLOPs; None for a first model."""
    first = _first(spec, specs)
    times, flops = (_ratio(found, spec, specs, key) for key in ("p50", "flops"))
    mine, base = _gflops(found, spec), _gflops(found, first)
    if spec is first or times is None or flops is None or mine is None or base is None:
        return None
    peak = found["peaks"]["gflops"]
    return (
        f"{spec['engine']}: {spec['model']} has {flops:.2f} times the FLOPs of {first['model']} and takes {times:.2f} times "
        f"as long: {mine:.1f} GFLOP/s ({mine / peak:.0%} of the float32 peak) beside {base:.1f} ({base / peak:.0%})"
    )
