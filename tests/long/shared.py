"""Kill students that share one teacher pass at random moments: each must end as it does alone.

The weights must be the same to the bit.

python tests/long/shared.py KILLS [--stages STAGE ...] [--seed SEED]
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

STUDENTS = {
    "transfer": ["transfer/mobilebert", "transfer/mobilebert-no-opt", "transfer/mobilebert-pd-fmt"],  # the last uses no maps
    "distill": ["distill/mobilebert", "distill/mobilebert-pd", "distill/control-fresh-student"],
}
EVERY = 3  # steps between two states


def study(stage: str, steps: int, share: bool):
    """Return the mini study with these students alone."""
    changes = {"steps": steps, "warmup_steps": 2, "batch_size": 4, "length": 16, "accumulate": 2, "precision": "bf16"}
    found = mini(**changes, checkpoint_every=EVERY, share_teacher=share)
    changed = found.model_copy(update={"run": {key.partition("/")[2]: () for key in STUDENTS[stage]}})
    object.__setattr__(changed, "_name", "mini")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--stages", nargs="+", choices=STUDENTS, default=list(STUDENTS), help="to kill (default: all)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments (default: drawn)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        for stage in options.stages:
            students = STUDENTS[stage]
            saved = killed(stage, students, options.kills, moments, Path(folder))
            print(f"{stage}: {len(students)} students, {options.kills} kills; steps saved: {saved}", flush=True)


def killed(stage: str, students: list[str], kills: int, moments: random.Random, folder: Path) -> list[list[int]]:
    """Return the steps that each student had saved at each kill."""
    steps, saved = 12 * (kills + 1), []
    runs, together = (Runs(study(stage, steps, share), folder) for share in (False, True))
    for key in ("data", "pretrain/ib-bert-large", *(["transfer/mobilebert"] if stage == "distill" else []), *students):
        runs.finish(key)
    alone = {key: runs.outcome(key) for key in students}
    for key in students:
        runs.forget(key)
    for kill in range(kills):
        # Alternate between one student alone, so that it is ahead of the others, and all of them,
        # led by any.
        key, one = moments.choice(students), (runs, together)[kill % 2]
        before, pid = runs.progress(key)[1], one.start(key)
        runs.wait_until(key, pid, lambda key=key, before=before: runs.progress(key)[1] != before)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "ended before it was killed"
        saved.append([runs.progress(key)[1] for key in students])
    leader, *others = moments.sample(students, len(students))
    together.finish(leader)
    shown = together.record(leader).details
    assert sorted(shown["teacher_shared_with"]) == sorted(others), shown
    assert ("train_stages" in shown) == (stage == "transfer"), shown
    assert [runs.progress(key)[1] for key in others] == [steps] * len(others)
    for key in others:
        together.finish(key)
        assert "train_tokens_per_second" not in together.record(key).details, f"{key} trained again"
    for key in students:
        assert runs.outcome(key) == alone[key], key
    return saved


if __name__ == "__main__":
    main()
