# The study, its graph of jobs, and what on disk belongs to it. Fingerprints decide what is stale (mobilebert/study/code_hash.py); file
# times do not: a job whose record stands has no inputs, and one with a stale record gets an input that is newer.
import contextlib
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from mobilebert.data import preflight
from mobilebert.jobs import locks, staleness
from mobilebert.jobs.freshness import current_records, freshness_of, record_file
from mobilebert.study.graph import add_views, build_graph, table_jobs
from mobilebert.study.load import load_study
from mobilebert.study.stages import VIEWS
from mobilebert.util.errors import UserError


def refuse(error):
    """One line and exit code 2, as the programs do."""
    print(f"mobilebert: {error}", file=sys.stderr)
    sys.exit(2)


try:
    if unknown := set(config) - {"study", "results"}:
        raise UserError(f"--config: unknown key {', '.join(sorted(unknown))}; allowed: study, results")
    if unread := [f"{key}={value}" for key, value in config.items() if not isinstance(value, str)]:
        raise UserError(f"--config: {unread[0]} is read as a number or list; write ./{unread[0].partition('=')[2]} or another name")
    STUDY_FILE = config.get("study", "smoke")
    STUDY = load_study(STUDY_FILE)
    GRAPH = build_graph(STUDY)
    RESULTS = Path(config.get("results", "results"))
    preflight.check_results(RESULTS, STUDY.name)
    OUT = RESULTS / STUDY.name
    CURRENT = current_records(RESULTS, STUDY.name, GRAPH)
    add_views(STUDY, GRAPH, CURRENT)
    STATES = {key: freshness_of(RESULTS, STUDY.name, job, GRAPH) for key, job in GRAPH.items()}
    # An input newer than all there is: Snakemake's own reason to make things again, in a dry run too. It lies outside the results.
    NEWER = tempfile.NamedTemporaryFile(prefix="stale-records-")
    TIMES = [path.stat().st_mtime + 1 for folder in (*GRAPH, "tables") for path in (OUT / folder).glob("*") if path.is_file()]
    os.utime(NEWER.name, (max([time.time(), *TIMES]),) * 2)
except (UserError, OSError) as error:  # OSError: a folder that cannot be read, a full disk
    refuse(error)

if workflow.is_main_process:  # not in the processes that Snakemake starts for single jobs
    for LINE in staleness.lines(RESULTS, STUDY.name, GRAPH):
        print(f"mobilebert: stale: {LINE}", file=sys.stderr)
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
        preflight.before_work(STUDY, RESULTS, GRAPH, GRAPH)
    except (UserError, OSError) as error:
        refuse(error)


def record(key):
    return str(record_file(RESULTS, STUDY.name, GRAPH[key]))


def key_of(stage, wildcards):
    names = [wildcards.get(part) for part in ("model", "task")]
    return Path(stage, *filter(None, names)).as_posix()


def products(key):
    """The files without which a job is to be made, whatever its record says."""
    more = {"report": ["index.html", "tables.md"], "check": ["passed"]}.get(key, [])
    return [record_file(RESULTS, STUDY.name, GRAPH[key]).with_name(name) for name in ["result.json", *more]]


def forced():
    """What the command line makes by force: names of rules, and files."""
    settings = workflow.dag_settings  # not there before the rules are read
    return {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}


def is_forced(key):
    files = map(os.path.abspath, products(key))
    by_file = not {os.path.abspath(name) for name in forced()}.isdisjoint(files)
    return workflow.dag_settings.forceall or GRAPH[key].stage in forced() or by_file


def rests(key):
    """Whether a job is not to be made: its record stands. A view rests if besides nothing that it shows is made again; a job that
    an input has refused, if nothing is made by force: of that its fingerprint knows nothing."""
    if STATES[key] != "current" or is_forced(key) or not all(path.exists() for path in products(key)):
        return False
    if key in VIEWS:
        return not forced() and all(rests(shown) or is_spared(shown) for shown in GRAPH[key].inputs)
    return not (forced() and CURRENT[key].status == "refused")


def is_spared(key):
    """Whether a record is missing and not missed: what was made from it stands. A score is missed: it is a result itself."""
    if STATES[key] != "missing" or GRAPH[key].stage == "finetune":
        return False
    users = (other for other, job in GRAPH.items() if key in job.inputs and other not in VIEWS)
    return any(rests(user) or is_spared(user) for user in users)


def needs(stage):
    """Input function: the records that a job reads; none if it rests. If it is there and is to be made again, the newer file too.

    With inputs that are `ancient` in place of none, Snakemake would pass by, and end well, what stands behind a resting job that
    stands behind one that is made; and it would make a resting job again when a record that it was made from is missing.
    """

    def paths(wildcards):
        key = key_of(stage, wildcards)
        newer = [NEWER.name] if any(path.exists() for path in products(key)) else []
        return [] if rests(key) else [*newer, *(record(upstream) for upstream in GRAPH[key].inputs)]

    return paths


def program(stage, name=""):
    """Command line of a stage; what it prints goes to the log, which Snakemake shows when the job fails."""
    words = [PYTHON, "-m", "mobilebert", stage]
    options = ["--study", STUDY_FILE, "--results", str(RESULTS)]
    return f"{shlex.join(words)} {name} {shlex.join(options)} --threads {{threads}} > {{log:q}} 2>&1"
