# Load the study and its graph of jobs. Fingerprints decide what is stale, not file times
# (mobilebert/study/code_hash.py). So a job that is up to date gets no inputs here, and a job with a
# stale record gets an input that is newer than every file.
import contextlib
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from snakemake.settings.enums import RerunTrigger

from mobilebert.data import preflight
from mobilebert.deployment.quantized_files import AWARE
from mobilebert.jobs import locks, modes, staleness
from mobilebert.jobs.demand import Demand, Forced
from mobilebert.jobs.freshness import current_records
from mobilebert.jobs.log_filter import rewrite
from mobilebert.study.graph import (
    add_views,
    build_graph,
    jobs_in_scope,
    table_jobs,
)
from mobilebert.study.load import load_study
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError


def refuse(error):
    """Print one line and exit with code 2, as the programs do."""
    print(f"mobilebert: {error}", file=sys.stderr)
    sys.exit(2)


try:
    if unknown := set(config) - {"study", "results"}:
        raise UserError(
            f"--config: unknown key {', '.join(sorted(unknown))}; allowed: study, results"
        )
    if unread := [
        f"{key}={value}" for key, value in config.items() if not isinstance(value, str)
    ]:
        raise UserError(
            f"--config: {unread[0]} is read as a number or list; write ./{unread[0].partition('=')[2]} or another name"
        )
    STUDY_FILE = config.get("study", "smoke")
    STUDY = load_study(STUDY_FILE)
    GRAPH = build_graph(STUDY)
    RESULTS = Path(config.get("results", "results"))
    preflight.check_results(RESULTS, STUDY.name)
    OUT = RESULTS / STUDY.name
    CURRENT = current_records(RESULTS, STUDY.name, GRAPH)
    add_views(STUDY, GRAPH, CURRENT)
    DEMAND = Demand(RESULTS, STUDY.name, GRAPH, CURRENT)
    IN_SCOPE = [*jobs_in_scope(STUDY, GRAPH), *VIEWS]
    modes.check(sys.argv, (path for key in IN_SCOPE for path in DEMAND.outputs(key)))
    # This file is newer than every result. Snakemake runs a job again if an input is newer than
    # its output, and reports that reason in a dry run too.
    NEWER = tempfile.NamedTemporaryFile(prefix="stale-records-")
    os.utime(NEWER.name, (max(time.time(), DEMAND.newest() + 1),) * 2)
except (UserError, OSError) as error:  # OSError: an unreadable folder, a full disk
    refuse(error)

# Snakemake reads this file again in the process of every job; only the main process reports what
# is stale.
if workflow.is_main_process:
    if "stale" in DEMAND.freshness.values():  # else do not read every record again
        for LINE in staleness.lines(RESULTS, STUDY.name, GRAPH):
            print(f"mobilebert: stale: {LINE}", file=sys.stderr)
    for LINE in modes.notes(sys.argv):
        print(f"mobilebert: {LINE}", file=sys.stderr)
ALL_CORES = (
    workflow.resource_settings.cores or 1
)  # read-only modes such as --dag run without --cores
IS_VIEWED = modes.is_viewing(sys.argv)
GPUS = int(STUDY.device == "cuda")
MODEL = "[^/]+"
ENVIRONMENT = f"{workflow.basedir}/environment.yml"
# Use the interpreter that runs Snakemake, even if its environment is not activated. With
# --software-deployment-method conda use the one of the rule's environment.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
HELD = (
    contextlib.ExitStack()
)  # holds the lock of the results folder until this process ends


wildcard_constraints:
    model=MODEL,
    task="[^/]+",


onstart:
    # Snakemake skips this in a dry run, and if there is nothing to do.
    try:
        HELD.enter_context(
            locks.lock(
                OUT / ".lock",
                f"{OUT}: in use by a live run of snakemake; wait until it ends, "
                "or write elsewhere: --config results=FOLDER",
            )
        )
        from mobilebert.deployment import requirements

        preflight.before_work(STUDY, RESULTS, GRAPH, GRAPH)
        requirements.check_jobs(STUDY, RESULTS, GRAPH, jobs_in_scope(STUDY, GRAPH))
    except (UserError, OSError) as error:
        refuse(error)


def record(key):
    """Return the path of a job's record."""
    return str(DEMAND.record(key))


def key_of(stage, wildcards):
    """Return the id of the job that a rule's wildcards name."""
    names = [wildcards.get(part) for part in ("model", "task")]
    return Path(stage, *filter(None, names)).as_posix()


def forced():
    """Return what the command line runs by force. Turn off Snakemake's triggers but file times.

    Snakemake has these settings only after it has read the rules. Its other triggers compare a job
    with Snakemake's own notes. They would run an up-to-date job again, because it has no inputs.
    """
    settings = workflow.dag_settings
    settings.rerun_triggers = frozenset({RerunTrigger.MTIME})
    names = {
        *settings.forcerun,
        *(settings.targets if settings.forcetargets else ()),
    }
    return Forced(frozenset(map(str, names)), bool(settings.forceall))


def because(rule, wildcards):
    """Return in our words why a job runs; "" for a rule that has no reason of its own."""
    if rule.startswith("table_"):
        return "a table is written whenever it is asked for"
    key = key_of(rule, wildcards)
    return staleness.because(DEMAND, key, forced()) if key in GRAPH else ""


if workflow.is_main_process:
    rewrite(logger, because)


def needs(stage):
    """Return an input function of a rule. It returns the records that the job reads.

    It returns no record if the job is up to date, except in a mode that only shows the study. If
    the job's files exist but it has to run again, it adds NEWER. Do not use ancient() here:
    Snakemake would skip a missing job behind an up-to-date one and still exit with 0. It would also
    run an up-to-date job again if that job's own inputs were deleted.
    """

    def paths(wildcards):
        key = key_of(stage, wildcards)
        if IS_VIEWED:
            return [record(upstream) for upstream in GRAPH[key].inputs]
        if DEMAND.is_up_to_date(key, forced()):
            return []
        exists = any(path.exists() for path in DEMAND.outputs(key))
        return [
            *([NEWER.name] if exists else []),
            *(record(upstream) for upstream in GRAPH[key].inputs),
        ]

    return paths


def program(stage, name=""):
    """Return the command line of a stage.

    Its output goes to the log, which Snakemake shows if the job fails.
    """
    words = [PYTHON, "-m", "mobilebert", stage]
    options = ["--study", STUDY_FILE, "--results", str(RESULTS)]
    return f"{shlex.join(words)} {name} {shlex.join(options)} --threads {{threads}} > {{log:q}} 2>&1"
