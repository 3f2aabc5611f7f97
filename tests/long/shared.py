"""Students that share one teacher pass, killed at random moments: each one ends as it does alone, to the bit.

python tests/long/shared.py KILLS [--seed SEED]
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

STUDENTS = ["distill/mobilebert", "distill/mobilebert-pd", "distill/control-fresh-student"]
EVERY = 3  # steps between two states


def study(steps: int, share: bool):
    """The mini study with these students alone."""
    changes = {"steps": steps, "warmup_steps": 2, "batch_size": 4, "length": 16, "accumulate": 2, "precision": "bf16"}
    found = mini(**changes, checkpoint_every=EVERY, share_teacher=share)
    changed = found.model_copy(update={"run": {key.partition("/")[2]: () for key in STUDENTS}})
    object.__setattr__(changed, "_name", "mini")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments (default: drawn)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    moments = random.Random(options.seed)
    steps = 12 * (options.kills + 1)
    with tempfile.TemporaryDirectory() as folder:
        runs, together = (Runs(study(steps, share), Path(folder)) for share in (False, True))
        for key in ("data", "pretrain/ib-bert-large", "transfer/mobilebert", *STUDENTS):
            runs.finish(key)
        alone = {key: runs.outcome(key) for key in STUDENTS}
        for key in STUDENTS:
            runs.forget(key)
        saved = []
        for kill in range(options.kills):
            # In turn: a student by itself, so that it is ahead of the others, and all of them, led by any.
            key, one = moments.choice(STUDENTS), (runs, together)[kill % 2]
            before, pid = runs.progress(key)[1], one.start(key)
            while runs.progress(key)[1] == before:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "ended before it was killed"
            saved.append([runs.progress(key)[1] for key in STUDENTS])
        leader, *others = moments.sample(STUDENTS, len(STUDENTS))
        together.finish(leader)
        shown = together.record(leader).details
        assert sorted(shown["teacher_shared_with"]) == sorted(others), shown
        assert [runs.progress(key)[1] for key in others] == [steps] * len(others)
        for key in others:
            together.finish(key)
            assert "train_tokens_per_second" not in together.record(key).details, f"{key} trained again"
        for key in STUDENTS:
            assert runs.outcome(key) == alone[key], key
    print(f"{len(STUDENTS)} students, {options.kills} kills; steps saved: {saved}")


if __name__ == "__main__":
    main()
