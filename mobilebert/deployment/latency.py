"""CPU latency of several models side by side: measured with the machine to itself, or void."""

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
# Largest |output - reference| / |reference| (2-norms). float32 kernels in another order differ by 1e-6; int8 weights by
# 0.01 to 0.03 on random models; other weights by about 1.
TOLERANCE = {"pytorch": 1e-3, "onnxruntime": 1e-3, "onnxruntime-int8": 0.1}
# The rule: a run is void if, over its timed rounds, what is not its own used more than this many cores on average.
OTHERS_CORES = 0.10
# Threads of OpenMP and ONNX Runtime spin for some milliseconds after their work; the next model must not pay for them.
SETTLE_S = 0.01


def measure(specs: list[dict], *, length: int, batch: int, threads: int, rounds: int, warmup: int, seed: int) -> dict[str, Any]:
    """Time one forward pass of each model in turn, `rounds` times.

    specs: {"name", "engine" (one of ENGINES), "config" (fields of a model's configuration, model_type among them)}.
    Every model runs alone in a fresh process and holds random weights drawn from `seed`: latency does not depend on the
    values. What is timed is embeddings and encoder, up to last_hidden_state, for `batch` unpadded sequences of `length`
    tokens, on `threads` threads. All models load, then wait; the parent asks one at a time, in an order shuffled anew
    for each round, so that a slow minute of the machine meets all of them. The first `warmup` rounds are not recorded.

    Returns {"models": {name: {"engine", "samples_ms", "p50", "p90", "p99", "min" (ms), "error", "bytes" (of the ONNX
    file; None for pytorch)}}, "machine": {"cores", "tick_s", "wall_s", "busy_s", "own_s" (CPU seconds of the timed
    rounds: all, and ours), "load_before", "load_after"}, "validity"} beside the settings. `validity` is "ok" or
    "void: <reasons>". The reasons: other processes used more than OTHERS_CORES of a core during the timed rounds
    (`sharing`); more threads than cores; an output of the last timed round that is further than TOLERANCE from that of
    the same weights in PyTorch, in a process that is not timed (`error`, the relative 2-norm).

    Raises UserError for settings and specs that are not as described; RuntimeError if a process fails. Linux only.
    """
    _check(specs, length=length, batch=batch, threads=threads, rounds=rounds, warmup=warmup)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mobilebert.deployment.latency_worker"])  # imports are paid once, not once a model
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
    """Percentiles (linear between samples) and minimum of the raw samples."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "min": float(min(samples_ms))}


def relative_error(output: np.ndarray, reference: np.ndarray) -> float:
    """|output - reference| / |reference|, 2-norms; infinite where the shapes differ."""
    if output.shape != reference.shape:
        return float("inf")
    return float(np.linalg.norm(output - reference) / np.linalg.norm(reference))


def busy_seconds(proc_stat: str, ticks_per_second: int) -> float:
    """CPU seconds, over all cores, in which something ran since boot, from the text of /proc/stat.

    Its first line counts ticks of user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    Time stolen by other virtual machines counts as busy: it was not there for this run.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, proc_stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks_per_second


def sharing(machine: dict) -> str | None:
    """Why the run was not alone on the machine, or None.

    machine: wall_s of the timed rounds, busy_s of all cores and own_s of this run's processes in that time, cores and
    tick_s. The kernel counts busy time in ticks, so one tick a core is allowed beside OTHERS_CORES.
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
            raise UserError(f"name: {name!r} stands for {names.count(name)} models; each needs its own")
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
    """Inputs, reference output and, by engine, ONNX files for one configuration, from a process that then ends."""
    task = (config, engines, folder, length, batch, seed)
    with _Worker(processes, f"reference of {config['model_type']}", "prepare", task) as worker:
        return worker.answer()


def _rounds(workers: dict, rounds: int, warmup: int, threads: int, seed: int) -> tuple[dict[str, list[float]], dict]:
    """Samples in ms by name, and what the machine did during the timed rounds."""
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
        self._connection.close()  # what the process takes as the end
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, question: str):
        with suppress(BrokenPipeError):  # of a dead process, which the answer reports
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
    """Entry of every process; the module with the heavy imports is one that only they load."""
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
