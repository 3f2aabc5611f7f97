"""Measure the CPU latency of several models side by side; the result is void on a busy machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.deployment.engines.table import ENGINES, INT8_FIXED_RANGES, engine_named, int8_share
from mobilebert.deployment.int8 import processor
from mobilebert.deployment.layer_errors import relative_error
from mobilebert.deployment.worker_process import Worker
from mobilebert.util.errors import UserError
from mobilebert.util.machine import cores

MODEL_TYPES = ("mobilebert", "bert")
SOURCES = ("config", "checkpoint", "file")  # keys of a spec: where its model comes from
# A measurement is void if other processes used more than this many cores on average while timed.
OTHERS_CORES = 0.10
BUSY = "other processes used"  # begins the reason of a run that was not alone
# Seconds between models: threads of OpenMP and ONNX Runtime spin for some milliseconds after their
# work, which would slow the next model.
SETTLE_S = 0.01


def measure(specs: list[dict], *, length: int, batch: int, threads: int, rounds: int, warmup: int, seed: int) -> dict[str, Any]:
    """Return the times of one forward pass of each model, measured in turn, `rounds` times.

    specs: {"name", "engine" (of `engines.table`), and one of SOURCES}. "config": fields of a
    model's configuration, model_type among them; the weights are drawn from `seed`, because latency
    does not depend on the values. "checkpoint": a folder or hub name. "file": a .tflite file.
    Embeddings and encoder are timed, up to last_hidden_state, for `batch` unpadded sequences of
    `length` tokens, on `threads` threads. Every model has a new process. The models load one after
    the other, then wait. The parent asks one at a time, in a new random order each round, so that a
    slow minute of the machine affects all of them. The first `warmup` rounds are not recorded.

    Returns the settings and "models", "machine", "peaks", "processor", "validity":

    models: {name: {"engine", "samples_ms", "p50", "p90", "p99", "min" (ms), "error", "bytes" (of
        the engine's file; None without), "flops" (of the batch), "parameters", "operators",
        "int8_flops_share", "owners" ([operation, calls, us], the slowest first), "cold_start_ms"
        (from the file to the first output), "memory_mib" (what engine and model add to a process),
        "ran_with"}}. None for what the engine cannot tell.
    machine: "cores", "tick_s", "wall_s", "busy_s" and "own_s" (CPU seconds of all processes and of
        ours in the timed rounds), "load_before", "load_after".
    peaks: "gflops" of float32 matrix products and "gb_per_s" of memory reads, on as many threads.
    validity: "ok" or "void: <reasons>":

    - Other processes used more than OTHERS_CORES cores during the timed rounds (`sharing`).
    - There are more threads than cores.
    - The output of a model is further than its engine's tolerance from that of the same weights in
      PyTorch, computed in another process (`error`, the relative 2-norm). If it is before the
      timed rounds, nothing is timed. A "file" has no such weights and error None.

    Raises UserError for bad settings and specs, an engine that is not installed or cannot run a
    model, or a process that fails. Linux only.
    """
    _check(specs, length=length, batch=batch, threads=threads, rounds=rounds, warmup=warmup)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mobilebert.deployment.latency_worker"])  # one import for all processes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latency-")))
        prepared = {}
        for spec in specs:
            key = _key(spec)
            if key not in prepared:
                engines = sorted({other["engine"] for other in specs if _key(other) == key})
                home = folder / str(len(prepared))
                prepared[key] = _prepare(processes, spec, engines, home, length, batch, seed)
        workers: dict[str, Any] = {}
        loaded = {}
        for spec in specs:
            source = prepared[_key(spec)]
            task = (spec["engine"], source_of(spec), source["files"].get(spec["engine"]), source["inputs"], threads, seed)
            workers[spec["name"]] = worker = stack.enter_context(Worker(processes, spec["name"], "serve", task))
            loaded[spec["name"]] = worker.answer()  # before the next one starts, whose load would slow this start
        reasons = [_crowding(threads, cores())]

        def differences() -> list[str | None]:
            return [_difference(spec, workers, prepared[_key(spec)], loaded[spec["name"]]["ran_with"]) for spec in specs]

        before = differences()
        samples: dict[str, list[float]] = {spec["name"]: [] for spec in specs}
        machine, peaks = {}, {}
        if any(before):
            reasons += before
        else:
            peaks, reason = _peaks(processes, threads)
            samples, machine = _rounds(workers, rounds, warmup, threads, seed)
            reasons += [sharing(machine), reason, *differences()]
        models = {}
        for spec in specs:
            name, source = spec["name"], prepared[_key(spec)]
            kernels = workers[name].ask("kernels")
            share = kernels.pop("int8_flops")
            models[name] = {
                "engine": spec["engine"],
                "samples_ms": samples[name],
                **summary(samples[name]),
                "error": _error(workers[name], source),
                "flops": source["flops"],
                "parameters": source["parameters"],
                **loaded[name],
                **kernels,
                "int8_flops_share": share and int8_share(share, source["flops"]),
            }
    reasons = [reason for reason in reasons if reason]
    return {
        "length": length,
        "batch": batch,
        "threads": threads,
        "rounds": rounds,
        "warmup": warmup,
        "seed": seed,
        "models": models,
        "machine": machine,
        "peaks": peaks,
        "processor": processor(),
        "validity": f"void: {'; '.join(reasons)}" if reasons else "ok",
    }


def source_of(spec: dict) -> dict:
    """Return where a spec's model comes from, as {"config": ...} or another of SOURCES."""
    return {key: spec[key] for key in SOURCES if key in spec}


def summary(samples_ms: list[float]) -> dict[str, float | None]:
    """Return percentiles (linear between samples) and minimum of the raw samples; None without."""
    if not samples_ms:
        return dict.fromkeys(("p50", "p90", "p99", "min"))
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "min": float(min(samples_ms))}


def busy_seconds(proc_stat: str, ticks_per_second: int) -> float:
    """Return the busy CPU seconds of all cores since boot, from the text of /proc/stat.

    Its first line counts ticks of user, nice, system, idle, iowait, irq, softirq, steal; user
    includes guests. Time stolen by other virtual machines counts as busy: we could not use it.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, proc_stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks_per_second


def sharing(machine: dict) -> str | None:
    """Return why the measurement was not alone on the machine, or None if it was.

    machine: wall_s of the timed rounds, busy_s of all cores and own_s of our processes in that
    time, cores and tick_s. The kernel counts busy time in ticks, so one more tick a core is allowed
    than OTHERS_CORES.
    """
    if machine["busy_s"] is None:
        return "/proc/stat is not readable here, so nothing shows that the run was alone"
    others = machine["busy_s"] - machine["own_s"]
    if others <= OTHERS_CORES * machine["wall_s"] + machine["cores"] * machine["tick_s"]:
        return None
    return f"{BUSY} {others / machine['wall_s']:.2f} of a core during the timed rounds, allowed is {OTHERS_CORES:.2f}"


def _crowding(threads: int, cores: int) -> str | None:
    return f"{threads} threads on {cores} cores" if threads > cores else None


def _check(specs: list[dict], **settings: int) -> None:
    for name, value in settings.items():
        least = 0 if name == "warmup" else 2 if name == "length" else 1
        if value < least:
            raise UserError(f"{name}: {value} is not an integer from {least}")
    names = [spec["name"] for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"name: {name!r} is the name of {names.count(name)} models; names must differ")
    for spec in specs:
        if spec["engine"] not in ENGINES:
            raise UserError(f"engine of {spec['name']}: {spec['engine']!r} is unknown: choose one of {', '.join(ENGINES)}")
        engine_named(spec["engine"]).check_installed()
        if "config" in spec and spec["config"].get("model_type") not in MODEL_TYPES:
            raise UserError(
                f"model_type of {spec['name']}: {spec['config'].get('model_type')!r} is unknown: "
                f"choose one of {', '.join(MODEL_TYPES)}"
            )


def _key(spec: dict) -> str:
    return json.dumps(source_of(spec), sort_keys=True)


def _prepare(processes, spec: dict, engines: list[str], folder: Path, length: int, batch: int, seed: int) -> dict:
    """Return what `latency_worker.prepare` sends for one model, from a process that then ends."""
    source = source_of(spec)
    name = f"reference of {spec['name']}" if "config" in source else next(iter(source.values()))
    with Worker(processes, name, "prepare", (source, engines, folder, length, batch, seed)) as worker:
        return worker.answer()


def _error(worker: Worker, source: dict) -> float | None:
    """Return the error of the model's last output; None if no weights in PyTorch are known."""
    return None if source["reference"] is None else relative_error(worker.ask("output"), source["reference"])


def _difference(spec: dict, workers: dict, source: dict, ran_with: dict) -> str | None:
    """Return why a model's last output voids the run, or None."""
    name, engine = spec["name"], ENGINES[spec["engine"]]
    # The engine litert runs a user's file of any kind.
    is_int8 = spec["engine"] == "litert" and "int8" in ran_with["precision"].split(", ")
    tolerance = INT8_FIXED_RANGES if is_int8 else engine.tolerance
    error = _error(workers[name], source)
    if error is None or error <= tolerance:  # not for NaN
        return None
    return f"{name}: its output is {error:.2g} away from that of the same weights in PyTorch, allowed is {tolerance:g}"


def _peaks(processes, threads: int) -> tuple[dict, str | None]:
    """Return this machine's peaks, and why they are void: None if they were measured alone."""
    with Worker(processes, "peaks", "measure_peaks", (threads,)) as worker:
        worker.answer()
        found, machine = _watched({"peaks": worker}, lambda: worker.ask("peaks"))
    reason = sharing(machine)
    return found, reason and f"{reason} (in those of the machine's peaks)"


def _watched(workers: dict, action: Callable[[], Any]) -> tuple[Any, dict]:
    """Return what an action returns, and what the machine did meanwhile."""
    own, busy, start = _own_seconds(workers), _busy_now(), time.perf_counter()
    found = action()
    wall, after = time.perf_counter() - start, _busy_now()
    return found, {
        "cores": os.cpu_count(),
        "tick_s": 1 / os.sysconf("SC_CLK_TCK"),
        "wall_s": wall,
        "busy_s": None if after is None or busy is None else after - busy,
        "own_s": _own_seconds(workers) - own,
    }


def _rounds(workers: dict, rounds: int, warmup: int, threads: int, seed: int) -> tuple[dict[str, list[float]], dict]:
    """Return the samples in ms by name, and what the machine did during the timed rounds."""
    order, names = np.random.default_rng(seed), list(workers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    load_before = os.getloadavg()

    def run(count: int) -> None:
        for _ in range(count):
            for name in order.permutation(names).tolist():
                if threads > 1:
                    time.sleep(SETTLE_S)
                samples[name].append(workers[name].ask("forward"))

    run(warmup)
    samples = {name: [] for name in names}
    _, machine = _watched(workers, lambda: run(rounds))
    return samples, machine | {"load_before": load_before, "load_after": os.getloadavg()}


def _own_seconds(workers: dict) -> float:
    return time.process_time() + sum(worker.ask("cpu") for worker in workers.values())


def _busy_now() -> float | None:
    try:
        return busy_seconds(Path("/proc/stat").read_text(encoding="ascii"), os.sysconf("SC_CLK_TCK"))
    except OSError:
        return None
