"""Run one stage and write a record, however it ends."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import bad_input, freshness_of
from mobilebert.jobs.locks import lock, lock_of
from mobilebert.jobs.record import Record, read_record
from mobilebert.jobs.usage import sampled
from mobilebert.study.job import Graph, Job
from mobilebert.study.stages import STAGES, VIEWS
from mobilebert.util.errors import Diverged, UserError


def _finished(context: JobContext) -> Record | None:
    """Return the record if it is current, not void and has all its artefacts; else None."""
    if freshness_of(context.results, context.study, context.job, context.graph) != "current":
        return None
    record = read_record(context.folder / "result.json")
    sizes = {name: known["bytes"] for name, known in record.artefacts.items()}
    there = all((context.folder / name).is_file() and (context.folder / name).stat().st_size == sizes[name] for name in sizes)
    return record if record.status != "void" and there else None


def execute_job(job: Job, study: str, results: Path, graph: Graph, stage: Callable[[JobContext], str | None]) -> Record:
    """Call `stage` with the job's context and return the record; skip a job that is done already.

    If the loss is not finite, the record says `diverged`, and those of the stages after it say
    `refused`. A UserError leaves a `refused` record and is raised again.
    """
    run = JobContext(job, study, results, graph)
    with lock(lock_of(run.state), f"{run.folder}: another process is making this result; wait until it ends"):
        if job.stage not in VIEWS and (done := _finished(run)):
            if done.status == "ok":
                shutil.rmtree(run.state, ignore_errors=True)  # left by a process killed after it wrote the record
            return done
        run.begin()
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "result.json").unlink(missing_ok=True)
        try:
            if job.stage not in VIEWS and (reason := bad_input(results, study, job, graph)):
                run.write("refused", reason)
            else:
                with sampled(run.usage) if STAGES[job.stage].gpu else contextlib.nullcontext():
                    outcome = stage(run)
                run.write("ok" if outcome is None else "void", outcome)
        except Diverged as error:
            run.write("diverged", str(error))
            return read_record(run.folder / "result.json")  # keep the last good saved state
        except UserError as error:
            with contextlib.suppress(OSError):  # a full disk has no room for a record either
                run.write("refused", str(error))
            raise
        shutil.rmtree(run.state)
    return read_record(run.folder / "result.json")
