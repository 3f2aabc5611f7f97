"""Kill a workflow again and again until it ends; its records must be those of one never killed.

python tests/long/workflow.py STUDY LEAST MOST   kill LEAST to MOST seconds after each start
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("workflow", "support"))
from conftest import Workflow

from mobilebert.jobs.record import read_record

MEASURED = {"latency", "report", "track", "check"}  # stages whose metrics hold times


def outcomes(folder: Path) -> dict[str, tuple]:
    """Return what a kill must not change of each record."""
    files = [file for file in folder.rglob("result.json") if "mlartifacts" not in file.parts]
    records = [record for record in map(read_record, files) if record.stage not in MEASURED]
    return {record.id: (record.fingerprint, record.metrics, record.samples, record.curves) for record in records}


def complete(study: str, results: Path) -> dict[str, tuple]:
    """Run a study to its end and return its outcomes. Raises SystemExit if it fails."""
    run = Workflow.run(study, results)
    if run.returncode:
        sys.exit(run.stdout[-3000:] + run.stderr[-3000:])
    return outcomes(results / Path(study).stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("least", type=float)
    parser.add_argument("most", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=200, help="give up after so many")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        kills = 0
        while Workflow.kill_after(moments.uniform(options.least, options.most), options.study, Path(folder, "killed")):
            kills += 1
            print(f"{options.study}: killed {kills} times", flush=True)
            if kills == options.starts:
                sys.exit(f"{options.study}: not done after {kills} starts")
        killed = complete(options.study, Path(folder, "killed"))
        whole = complete(options.study, Path(folder, "whole"))
        differing = sorted(key for key in whole.keys() | killed.keys() if whole.get(key) != killed.get(key))
        if differing:
            sys.exit(f"{options.study}: after {kills} kills these records differ: {', '.join(differing)}")
    print(f"{options.study}: {kills} kills, {len(whole)} records equal")


if __name__ == "__main__":
    main()
