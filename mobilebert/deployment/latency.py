"""Measure the CPU latency of several models side by side; the result is void on a busy machine."""

import json
import multiprocessing
import os
import tempfile
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mobilebert.util.errors import UserError
from mobilebert.util.machine import cores
from mobilebert.util.packages import not_installed

ENGINES = ("pytorch", "onnxruntime", "onnxruntime-int8")
MODEL_TYPES = ("mobilebert", "bert")
# Largest |output - reference| / |reference| (2-norms). float32 kernels that sum in another order
# differ by 1e-6; int8 weights by 0.01 to 0.03 on random models; other weights by about 1.
TOLERANCE = {"pytorch": 1e-3, "onnxruntime": 1e-3, "onnxruntime-int8": 0.1}
# A measurement is void if other processes used more than this many cores on average while timed.
OTHERS_CORES = 0.10
# Seconds between models: threads of OpenMP and ONNX Runtime spin for some milliseconds after their
# work, which would slow the next model.
SETTLE_S = 0.01


def measure(specs: list[dict], *, length: int, batch: int, threads: int, rounds: int, warmup: int, seed: int) -> dict[str, Any]:
    """Return the times of one forward pass of each model, measured in turn, `rounds` times.

    specs: {"name", "engine" (one of ENGINES), "config" (fields of a model's configuration,
    model_type among them)}. Every model runs in a new process with random weights drawn from
    `seed`: latency does not depend on the values. Embeddings and encoder are timed, up to
    last_hidden_state, for `batch` unpadded sequences of `length` tokens, on `threads` threads. All
    models load, then wait. The parent asks one at a time, in a new random order each round, so that
    a slow minute of the machine affects all of them. The first `warmup` rounds are not recorded.

    Returns the settings and {"models": {name: {"engine", "samples_ms", "p50", "p90", "p99", "min"
    (ms), "error", "bytes" (of the ONNX file; None for pytorch)}}, "machine": {"cores", "tick_s",
    "wall_s", "busy_s" and "own_s" (CPU seconds of all processes and of ours in the timed rounds),
    "load_before", "load_after"}, "validity"}. `validity` is "ok" or "void: <reasons>":

    - Other processes used more than OTHERS_CORES cores during the timed rounds (`sharing`).
    - There are more threads than cores.
    - The output of a model's last timed round is further than TOLERANCE from that of the same
      weights in PyTorch, computed in another process (`error`, the relative 2-norm).

    Raises UserError for bad settings and specs, RuntimeError if a process fails. Linux only.
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
                prepared[key] = _prepare(processes, spec["config"], engines, home, length, batch, seed)
        workers = {}
        for spec in specs:
            inputs = prepared[_key(spec)]["inputs"]
            file = prepared[_key(spec)]["files"].get(spec["engine"])
            workers[spec["name"]] = stack.enter_context(
                _Worker(processes, spec["name"], "serve", (spec["config"], file, inputs, threads, seed))
            )
        for worker in workers.values():
            worker.answer()
        samples, machine = _rounds(workers, rounds, warmup, threads, seed)
        models, reasons = {}, [sharing(machine), _crowding(threads, cores())]
        for spec in specs:
            name, engine, source = spec["name"], spec["engine"], prepared[_key(spec)]
            error = relative_error(workers[name].ask("output"), source["reference"])
            file = source["files"].get(engine)
            models[name] = {
                "engine": engine,
                "samples_ms": samples[name],
                **summary(samples[name]),
                "error": error,
                "bytes": None if file is None else file.stat().st_size,
            }
            if not error <= TOLERANCE[engine]:
                reasons.append(
                    f"{name}: its output is {error:.2g} away from that of the same weights in PyTorch, "
                    f"allowed is {TOLERANCE[engine]:g}"
                )
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
        "validity": f"void: {'; '.join(reasons)}" if reasons else "ok",
    }


def summary(samples_ms: list[float]) -> dict[str, float]:
    """Return percentiles (linear between samples) and minimum of the raw samples."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "min": float(min(samples_ms))}


def relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    """Return |output - reference| / |reference| (2-norms), infinite if the shapes differ."""
    if output.shape != reference.shape:
        return float("inf")
    return float(np.linalg.norm(output - reference) / np.linalg.norm(reference))


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
    return (
        f"other processes used {others / machine['wall_s']:.2f} of a core during the timed rounds, allowed is {OTHERS_CORES:.2f}"
    )


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
        if spec["config"].get("model_type") not in MODEL_TYPES:
            raise UserError(
                f"model_type of {spec['name']}: {spec['config'].get('model_type')!r} is unknown: "
                f"choose one of {', '.join(MODEL_TYPES)}"
            )


def _key(spec: dict) -> str:
    return json.dumps(spec["config"], sort_keys=True)


def _prepare(processes, config: dict, engines: list[str], folder: Path, length: int, batch: int, seed: int) -> dict:
    """Return inputs, reference output and ONNX files (by engine) for one configuration.

    They come from a process that then ends.
    """
    task = (config, engines, folder, length, batch, seed)
    with _Worker(processes, f"reference of {config['model_type']}", "prepare", task) as worker:
        return worker.answer()


def _rounds(workers: dict, rounds: int, warmup: int, threads: int, seed: int) -> tuple[dict[str, list[float]], dict]:
    """Return the samples in ms by name, and what the machine did during the timed rounds."""
    order, names = np.random.default_rng(seed), list(workers)
    samples = {name: [] for name in names}
    load_before = os.getloadavg()
    for index in range(warmup + rounds):
        if index == warmup:
            own, busy, start = _own_seconds(workers), _busy_now(), time.perf_counter()
        for name in order.permutation(names).tolist():
            if threads > 1:
                time.sleep(SETTLE_S)
            sample = workers[name].ask("forward")
            if index >= warmup:
                samples[name].append(sample)
    wall, after = time.perf_counter() - start, _busy_now()
    return samples, {
        "cores": os.cpu_count(),
        "tick_s": 1 / os.sysconf("SC_CLK_TCK"),
        "wall_s": wall,
        "busy_s": None if after is None or busy is None else after - busy,
        "own_s": _own_seconds(workers) - own,
        "load_before": load_before,
        "load_after": os.getloadavg(),
    }


def _own_seconds(workers: dict) -> float:
    return time.process_time() + sum(worker.ask("cpu") for worker in workers.values())


def _busy_now() -> float | None:
    try:
        return busy_seconds(Path("/proc/stat").read_text(encoding="ascii"), os.sysconf("SC_CLK_TCK"))
    except OSError:
        return None


class _Worker:
    """A process of `latency_worker` and the pipe to it."""

    def __init__(self, processes, name: str, task: str, arguments: tuple):
        self.name = name
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=_work, args=(theirs, task, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()  # tells the process to end
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, question: str):
        with suppress(BrokenPipeError):  # the process is dead: answer() reports it
            self._connection.send(question)
        return self.answer()

    def answer(self):
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"{self.name}: its process ended without an answer (out of memory?)") from None
        if kind == "user error":
            raise UserError(f"{self.name}: {value}")
        if kind == "error":
            raise RuntimeError(f"{self.name}: {value}")
        return value


def _work(connection: Connection, task: str, arguments: tuple) -> None:
    """Run a task of `latency_worker`: the entry point of every process.

    The module is imported here because its imports are slow and the parent does not need them.
    """
    try:
        from mobilebert.deployment import latency_worker

        getattr(latency_worker, task)(connection, *arguments)
    except EOFError:
        pass  # the parent is done, or gone
    except ModuleNotFoundError as error:
        connection.send(("user error", str(not_installed(error))))
    except UserError as error:
        connection.send(("user error", str(error)))
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
