"""Run one stage and leave a record, whatever comes of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import _bad_input, freshness_of
from mobilebert.jobs.locks import lock, lock_of
from mobilebert.jobs.record import Record, read_record
from mobilebert.study.job import Graph, Job
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import Diverged, UserError


def _finished(context: JobContext) -> Record | None:
    """The record of a run that need not be made again: its own, not void, its artefacts all there."""
    if freshness_of(context.results, context.study, context.job, context.graph) != "current":
        return None
    record = read_record(context.folder / "result.json")
    sizes = {name: known["bytes"] for name, known in record.artefacts.items()}
    there = all((context.folder / name).is_file() and (context.folder / name).stat().st_size == sizes[name] for name in sizes)
    return record if record.status != "void" and there else None


def execute_job(job: Job, study: str, results: Path, graph: Graph, stage: Callable[[JobContext], str | None]) -> Record:
    """Run `stage(run)` and leave a record, whatever came of it. What is done already is not done again.

    A loss that is not finite is an outcome: the record says `diverged`, and the stages after it say `refused`. A UserError
    leaves a `refused` record and is raised again.
    """
    run = JobContext(job, study, results, graph)
    with lock(lock_of(run.state), f"{run.folder}: another process is making this result"):
        if job.stage not in VIEWS and (done := _finished(run)):
            if done.status == "ok":
                shutil.rmtree(run.state, ignore_errors=True)  # of a run killed after it had written its record
            return done
        run.begin()
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "result.json").unlink(missing_ok=True)
        try:
            if job.stage not in VIEWS and (reason := _bad_input(results, study, job, graph)):
                run.write("refused", reason)
            else:
                run.write("ok" if (outcome := stage(run)) is None else "void", outcome)
        except Diverged as error:
            run.write("diverged", str(error))
            return read_record(run.folder / "result.json")  # its last good state stays
        except UserError as error:
            with contextlib.suppress(OSError):  # on a full disk there is no room for a record either
                run.write("refused", str(error))
            raise
        shutil.rmtree(run.state)
    return read_record(run.folder / "result.json")
