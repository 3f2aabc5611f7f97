# The study, its graph of jobs, and what on disk belongs to it. Fingerprints decide what is stale (mobilebert/jobs.py); file
# times do not: to a job that rests every input is `ancient`, and one with a stale record gets an input that is newer.
import contextlib
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from mobilebert import config as studies, jobs, locks, preflight, records
from mobilebert.errors import UserError


def refuse(error):
    """One line and exit code 2, as the programs do."""
    print(f"mobilebert: {error}", file=sys.stderr)
    sys.exit(2)


try:
    if unknown := set(config) - {"study", "results"}:
        raise UserError(f"--config: unknown key {', '.join(sorted(unknown))}; allowed: study, results")
    STUDY_FILE = str(config.get("study", "smoke"))
    STUDY = studies.load(STUDY_FILE)
    GRAPH = jobs.build(STUDY)
except UserError as error:
    refuse(error)

RESULTS = Path(str(config.get("results", "results")))
OUT = RESULTS / STUDY.name
CURRENT = records.current(RESULTS, STUDY.name, GRAPH)
jobs.finish(STUDY, GRAPH, CURRENT)
STATES = {key: records.state_of(RESULTS, STUDY.name, job, GRAPH) for key, job in GRAPH.items()}
STALE = {key for key, state in STATES.items() if state == "stale"}
# An input newer than every stale record: Snakemake's own reason to make them again, in a dry run too. It lies outside the results.
NEWER = tempfile.NamedTemporaryFile(prefix="stale-records-")
LATEST = [records.file(RESULTS, STUDY.name, GRAPH[key]).stat().st_mtime + 1 for key in STALE]
os.utime(NEWER.name, (max([time.time(), *LATEST]),) * 2)
GPUS = int(STUDY.device == "cuda")
MODEL = "[^/]+"
ENVIRONMENT = f"{workflow.basedir}/environment.yml"
# This environment's, also where it is not activated; the rule's own with --software-deployment-method conda.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
HELD = contextlib.ExitStack()  # the results folder's lock, until this process ends


wildcard_constraints:
    model=MODEL,
    task="[^/]+",


onstart:
    # Not for a dry run, and not when there is nothing to do.
    try:
        HELD.enter_context(locks.lock(OUT / ".lock", f"{OUT}: in use by a live run"))
        preflight.check(STUDY, records.state_of(RESULTS, STUDY.name, GRAPH["data"], GRAPH) == "current")
    except UserError as error:
        refuse(error)


def record(key):
    return str(records.file(RESULTS, STUDY.name, GRAPH[key]))


def key_of(stage, wildcards):
    names = [wildcards.get(part) for part in ("model", "task")]
    return Path(stage, *filter(None, names)).as_posix()


def is_stale(key):
    """Whether what is there is to be made again: other code or another configuration; also a view, where a job is made again by
    force (`--forcerun latency`), for its fingerprint knows nothing of that."""
    return key in STALE or (key in records.VIEWS and bool(workflow.dag_settings.forcerun))


def rests(key):
    """Whether a job is made only if something wants it: its record stands, or is missing and one that was made from it stands.

    To any other job no input is ancient, for Snakemake passes by what lies behind a job that it makes again if that has ancient
    inputs alone, also where its output is missing: it would make the one job, and end well with the target unmade.
    """
    if is_stale(key):
        return False
    if key == "check":
        return STATES[key] == "current" and (OUT / "check/passed").exists()
    users = (other for other, job in GRAPH.items() if key in job.inputs)
    return STATES[key] == "current" or any(STATES[user] == "current" for user in users)


def settled(stage):
    """Input function: the records that a job reads, if it rests: their age is nothing to it."""

    def paths(wildcards):
        key = key_of(stage, wildcards)
        return [record(upstream) for upstream in GRAPH[key].inputs] if rests(key) else []

    return paths


def unsettled(stage):
    """Input function: the records that a job reads, if it does not rest, and the newer file, if it is stale."""

    def paths(wildcards):
        key = key_of(stage, wildcards)
        newer = [NEWER.name] if is_stale(key) else []
        return [] if rests(key) else [*newer, *(record(upstream) for upstream in GRAPH[key].inputs)]

    return paths


def program(stage, name=""):
    """Command line of a stage; what it prints goes to the log, which Snakemake shows when the job fails."""
    words = [PYTHON, "-m", "mobilebert", stage]
    options = ["--study", STUDY_FILE, "--results", str(RESULTS)]
    return f"{shlex.join(words)} {name} {shlex.join(options)} --threads {{threads}} > {{log}} 2>&1"
