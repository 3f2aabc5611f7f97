"""Make a baseline from the seeds of a study, and say what it changes of the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from mobilebert.compare import seeds as seeded
from mobilebert.compare.baseline import Change, read_baseline, write_baseline
from mobilebert.compare.comparison import compare
from mobilebert.compare.gate import direction, parts, values_of
from mobilebert.compare.open import open_run
from mobilebert.compare.rule import LEAST_SEEDS, unfit
from mobilebert.compare.side import Side, sides
from mobilebert.compare.text import text
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError


def freeze_study(out: Path, name: str, results: Path, seeds: Iterable[int] | None, reason: str | None) -> Iterator[str]:
    """Write the baseline of a study and yield what to print.

    Raises UserError, before anything is written, if the file exists and `reason` is None, if seeds
    are missing, if the reason is empty, if the file is another study's, or if a gated metric cannot
    be a gate (`rule.unfit`).
    """
    if out.exists() and reason is None:
        raise UserError(f"{out}: exists; --accept REASON replaces it")
    if reason is not None and not reason.strip():
        raise UserError("baseline: --accept needs a reason, which the file keeps")
    study = load_study(name)
    before = read_baseline(out) if out.exists() else None
    if before and before.study != study.name:
        raise UserError(f"{out}: a baseline of the study {before.study}, not of {study.name}; name it with --study")
    folders = seeded.folders(study, results, seeds)
    if len(folders) < LEAST_SEEDS:
        most = f"run more: mobilebert seeds 1-20 --study {name}"
        raise UserError(f"{study.name}: seeds in {results}: {len(folders)}; a baseline needs {LEAST_SEEDS}, better 20; {most}")
    side = _one(study.name, results, folders)
    for metric in study.gate.metrics:
        _check(side, metric, study.gate.ignore)
    change = Change(made=datetime.now(UTC).date().isoformat(), reason=reason or "first")
    write_baseline(out, study.name, study.gate, side, [*(before.history if before else ()), change])
    if before:
        yield text(compare(before.side("before"), [side]))
    yield f"{out}: {len(side.seeds)} seeds, {len(side.jobs)} records, {len(study.gate.metrics)} gated metrics"


def _one(study: str, results: Path, folders: list[Path]) -> Side:
    """Return the seeds as one side. Raises UserError if they are several experiments."""
    runs = [open_run(str(folder)) for folder in folders]
    for run in runs:
        if run.edited:
            raise UserError(f"{run.name}: {run.edited[0]} was edited by hand; delete its result.json and run the seed again")
    found = sides(runs)
    if len(found) > 1:
        raise UserError(
            f"{study}: {found[1].name} has another configuration or other data than {found[0].name}; see mobilebert compare"
        )
    if len(set(found[0].seeds)) < len(runs):
        raise UserError(f"{study}: two folders in {results} have the same seeds; delete one")
    return found[0]


def _check(side: Side, metric: str, ignore: Iterable[str]) -> None:
    direction(metric)
    values = [value for value in values_of(side, metric) if value is not None]
    if len(values) < LEAST_SEEDS and any(job in ignore for job, _ in parts(metric)):
        return  # a timing is void on a busy machine
    if problem := unfit(values):
        raise UserError(f"gate.metrics: {metric}: {problem}; name another metric, or run more seeds")
