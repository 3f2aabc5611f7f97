"""Kill trainings at random moments and resume them: the weights must be the same to the bit.

The trainings are the teacher, each transfer strategy and distillation; they save a state every few
steps. The teacher is then killed again with states saved by the clock.

python tests/long/kills.py KILLS [--programs NAME ...] [--seed SEED]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from forked import Runs, mini

from mobilebert.training import checkpoint

PROGRAMS = {  # inputs come before the program that reads them
    "teacher": "pretrain/ib-bert-large",
    "AKT": "distill/mobilebert-akt",
    "JKT": "transfer/mobilebert-jkt",
    "PKT": "transfer/mobilebert",
    "distillation": "distill/mobilebert",
}
EVERY = 3  # steps between two states


def check(runs: Runs, key: str, kills: int, moments: random.Random) -> str:
    """Kill a program `kills` times, over as many whole jobs as that takes. Compare each whole job
    with the one that was never killed."""
    start = time.monotonic()
    pid, first = runs.start(key), None
    while not os.waitpid(pid, os.WNOHANG)[0]:
        first = first or (runs.progress(key)[0] and time.monotonic() - start)
        time.sleep(0.002)
    seconds = time.monotonic() - start
    first = first or seconds
    training = seconds - first
    expected = runs.outcome(key)
    runs.forget(key)
    killed, lost, whole = 0, [], 0
    while killed < kills:
        in_training = moments.random() < 0.8  # the rest mostly before its first step
        after = moments.uniform(0, max(0.05, 2 * training / kills) if in_training else first)
        if not runs.kill(key, after, in_training):
            whole += 1
            assert runs.outcome(key) == expected, f"{key}: after {killed} kills"
            runs.forget(key)
            continue
        killed += 1
        if runs.is_recorded(key):  # killed while removing its state, after its record: nothing to lose
            continue
        reached, saved = runs.progress(key)
        lost.append(reached - saved)
        assert 0 <= lost[-1] <= EVERY, f"{key}: reached step {reached}, saved {saved}"
    runs.finish(key)
    assert runs.outcome(key) == expected, f"{key}: after {killed} kills"
    return f"{killed} kills in {whole + 1} runs, steps lost: {sum(lost)}, at most {max(lost, default=0)} of {EVERY} at once"


def check_by_time(folder: Path, kills: int) -> str:
    """Kill the teacher at each state that it saves by the clock; by steps it would save none."""
    checkpoint.LEAST_SECONDS = 0.05
    runs, key = Runs(mini(steps=60 + 30 * kills, warmup_steps=2, batch_size=4, length=16), folder), PROGRAMS["teacher"]
    for needed in ("data", key):
        runs.finish(needed)
    expected, saved = runs.outcome(key), [0]
    runs.forget(key)
    for _ in range(kills):
        pid = runs.start(key)
        runs.wait_until(key, pid, lambda: runs.progress(key)[1] != saved[-1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        saved.append(runs.progress(key)[1])
    runs.finish(key)
    assert runs.outcome(key) == expected, f"{key}: after {kills} kills"
    return f"{kills} kills, states after steps {saved[1:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, help="kills of each program")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="to kill (default: all)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments (default: drawn)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        # Enough steps for this many kills. AKT takes twice as many, and up to 400 steps each one is
        # a point of the curves.
        steps = min(190, max(12, 4 * options.kills))
        runs = Runs(mini(steps=steps, warmup_steps=2, batch_size=4, length=16, checkpoint_every=EVERY), Path(folder))
        runs.finish("data")
        for name, key in PROGRAMS.items():
            if name in options.programs:
                print(f"{name} ({key}): {check(runs, key, options.kills, moments)}", flush=True)
            elif any(key in runs.graph[PROGRAMS[other]].inputs for other in options.programs):
                runs.finish(key)
    with tempfile.TemporaryDirectory() as folder:
        print(f"by time: {check_by_time(Path(folder), options.kills)}", flush=True)


if __name__ == "__main__":
    main()
