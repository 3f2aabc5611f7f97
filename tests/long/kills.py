"""The teacher, each strategy and distillation, killed at random moments and continued: the same weights to the bit.

python tests/long/kills.py KILLS [--seed SEED]

Every run is a process forked from this one, which has torch loaded and never computes with it: a kill costs no import.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers  # noqa: F401  (what the stages import, once)
from safetensors import safe_open

from mobilebert import config, jobs, records
from mobilebert.modeling import heads  # noqa: F401
from mobilebert.stages import data, distill, pretrain, transfer

MINI = Path(__file__).parents[1] / "workflow" / "mini.yaml"
STAGES = {"data": data, "pretrain": pretrain, "transfer": transfer, "distill": distill}
PROGRAMS = {  # each one's inputs are above it
    "teacher": "pretrain/ib-bert-large",
    "AKT": "distill/mobilebert-akt",
    "JKT": "transfer/mobilebert-jkt",
    "PKT": "transfer/mobilebert",
    "distillation": "distill/mobilebert",
}
EVERY = 3  # steps between two states


def small_study(kills: int):
    """Enough steps for so many kills, few enough (below 400) that each one is a point of the curves."""
    study, steps = config.load(MINI), min(190, max(12, 4 * kills))  # AKT takes twice as many
    changes = {"steps": steps, "warmup_steps": 2, "batch_size": 4, "length": 16, "checkpoint_every": EVERY}
    sections = {name: getattr(study, name).model_copy(update=changes) for name in ("pretrain", "transfer", "distill")}
    changed = study.model_copy(update=sections)
    object.__setattr__(changed, "_name", "mini")
    return changed


class Runs:
    """The jobs of a study in one results folder, each run in a process of its own."""

    def __init__(self, study, results: Path):
        self.study, self.results, self.graph = study, results, jobs.build(study)

    def start(self, key: str) -> int:
        """Fork; returns the process id."""
        if pid := os.fork():
            return pid
        code = 1
        try:
            os.dup2(os.open(self.results / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            job = self.graph[key]
            stage = STAGES[job.stage]
            records.execute(job, self.study.name, self.results, self.graph, lambda run: stage.run(run, self.study))
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def finish(self, key: str) -> None:
        status = os.waitpid(self.start(key), 0)[1]
        assert status == 0, f"{key}: {status}\n{(self.results / 'log').read_text()[-2000:]}"

    def kill(self, key: str, after: float) -> bool:
        """Start a run and kill it after so many seconds; False where it ended first."""
        pid, end = self.start(key), time.monotonic() + after
        while time.monotonic() < end:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                assert status == 0, f"{key}: {status}\n{(self.results / 'log').read_text()[-2000:]}"
                return False
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    def record(self, key: str) -> records.Record:
        return records.read(records.file(self.results, self.study.name, self.graph[key]))

    def outcome(self, key: str):
        """What a kill must not change."""
        record = self.record(key)
        return record.artefacts["model/model.safetensors"], record.metrics, record.curves

    def forget(self, key: str) -> None:
        shutil.rmtree(records.folder(self.results, self.study.name, self.graph[key]))

    def progress(self, key: str) -> tuple[int, int]:
        """Steps reached, by the curves, and steps saved."""
        state = records.Run(self.graph[key], self.study.name, self.results, self.graph).state
        reached = saved = 0
        if (state / "curves.jsonl").exists():
            lines = (state / "curves.jsonl").read_bytes().split(b"\n")[:-1]  # the last one may be cut short
            reached = max((json.loads(line)["step"] + 1 for line in lines), default=0)
        if (state / "train.safetensors").exists():
            with safe_open(state / "train.safetensors", "np") as stream:
                saved = int(stream.metadata()["step"])
        return reached, saved


def check(runs: Runs, key: str, kills: int, moments: random.Random) -> str:
    """Kill a program so often, over as many whole runs as that takes; after each one compare with the run never killed."""
    start = time.monotonic()
    pid, first = runs.start(key), None
    while not os.waitpid(pid, os.WNOHANG)[0]:
        first = first or (runs.progress(key)[0] and time.monotonic() - start)
        time.sleep(0.002)
    seconds, first = time.monotonic() - start, first or 0.0
    expected = runs.outcome(key)
    runs.forget(key)
    killed, lost, whole = 0, [], 0
    while killed < kills:
        if not runs.kill(key, moments.uniform(0, first + 2 * (seconds - first) / kills)):
            whole += 1
            assert runs.outcome(key) == expected, f"{key}: after {killed} kills"
            runs.forget(key)
            continue
        killed += 1
        reached, saved = runs.progress(key)
        lost.append(reached - saved)
        assert 0 <= lost[-1] <= EVERY, f"{key}: reached step {reached}, saved {saved}"
    runs.finish(key)
    assert runs.outcome(key) == expected, f"{key}: after {killed} kills"
    return f"{killed} kills in {whole + 1} runs, steps lost: {sum(lost)}, at most {max(lost)} of {EVERY} at once"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, help="kills of each program")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments (default: drawn)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(small_study(options.kills), Path(folder))
        runs.finish("data")
        for name, key in PROGRAMS.items():
            print(f"{name} ({key}): {check(runs, key, options.kills, moments)}", flush=True)


if __name__ == "__main__":
    main()
