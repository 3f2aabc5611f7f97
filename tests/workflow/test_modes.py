"""Snakemake's modes that run nothing start without --cores, on a study that has not begun.

test_smoke.py tries the same modes on a finished study.
"""

import json
import re
import tarfile
from pathlib import Path

import pytest

from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.stages import STAGES, VIEWS

WIDEST = 320  # characters of a line of `snakemake -n`: three files, or 200 characters of ours
CONDA = """#!/bin/sh
case "$*" in
"info --json") echo '{"conda_prefix": "/nowhere", "platform": "linux-64"}' ;;
--version) echo conda 25.1.1 ;;
config*) echo '{"get": {"channel_priority": "strict"}}' ;;
esac
"""


def look(workflow, study, results: Path, folder: Path):
    """Return how every mode ends, typed without --cores, and with a conda that installs nothing.

    folder: where the modes write.
    """
    (folder / "bin").mkdir()
    (folder / "bin/conda").write_text(CONDA)
    (folder / "bin/conda").chmod(0o755)
    alone = ("-n", "--dag", "--rulegraph", "--filegraph", "--d3dag", "--summary", "--detailed-summary")
    alone += ("--containerize", "--unlock", "--list-untracked")
    modes = {
        **{mode: [mode] for mode in alone},
        **{f"--list-changes {what}": ["--list-changes", what] for what in ("code", "input", "params")},
        "triggers": ["-n", "--rerun-triggers", "mtime", "code", "input", "params", "software-env"],
        "--report": ["--report", str(folder / "report.html")],
        "--archive": ["--archive", str(folder / "archive.tar"), "--conda-prefix", str(folder / "conda")],
        "--cleanup-metadata": ["--cleanup-metadata", str(results / study / "report/index.html")],
        "--generate-unit-tests": ["--generate-unit-tests", f"build/{folder.name}"],  # inside the checkout
    }
    commands = {mode: [*words, "--config", f"study={study}", f"results={results}"] for mode, words in modes.items()}
    commands["paper"] = ["-n", "--config", "study=paper", f"results={folder}"]
    return workflow.look(commands, path=str(folder / "bin"))


def jobs_of(study):
    loaded = load_study(str(study))
    return {*jobs_in_scope(loaded, build_graph(loaded)), *VIEWS}


def check_views(ended, study, study_folder: Path):
    """Check that every mode that shows the study shows all its jobs, run or not."""
    jobs = jobs_of(study)
    stages = {job.partition("/")[0] for job in jobs}
    labels = re.findall(r'\[label = "(\w+)', ended["--dag"].out)
    assert sorted(labels) == sorted(["all", *(job.partition("/")[0] for job in jobs)])
    assert {*re.findall(r'\[label = "(\w+)', ended["--rulegraph"].out)} == {"all", *stages}
    files = {f"{study_folder}/{job}/{'passed' if job == 'check' else 'result.json'}" for job in jobs}
    for mode in ("--summary", "--detailed-summary"):
        assert {line.split("\t")[0] for line in ended[mode].out.splitlines()[1:]} >= files
    assert stages <= {*re.findall(r"<b><font[^>]*>(\w+)", ended["--filegraph"].out)}
    graph = json.loads(ended["--d3dag"].out)
    assert {node["value"]["label"] for node in graph["nodes"]} == {"all", *stages}
    for mode in ("--dag", "--rulegraph", "--filegraph", "--d3dag", "--summary", "--detailed-summary", "--unlock", "-n"):
        assert ended[mode].code == 0, ended[mode].err


def check_packing(ended, folder: Path):
    """Check that --archive, --containerize and --list-untracked show the checkout's files."""
    assert ended["--archive"].code == 0, ended["--archive"].err
    with tarfile.open(folder / "archive.tar") as archive:
        names = archive.getnames()
    assert {"Snakefile", "workflows/rules/common.smk", "mobilebert/cli/main.py", "environment.yml"} <= {*names}
    assert ended["--containerize"].code == 0, ended["--containerize"].err
    assert ended["--containerize"].out.startswith("FROM condaforge/miniforge3")
    assert "conda env create" in ended["--containerize"].out
    assert "README.md" in "".join(ended["--list-untracked"][1:]).splitlines()


def check_notes(ended):
    """Check that one line says what Snakemake's own notes are worth here."""
    for mode in ended:
        lines = [line for line in ended[mode].err.splitlines() if line.startswith("mobilebert: --")]
        noted = mode.startswith(("triggers", "--list-changes"))
        assert len(lines) == (noted or (mode == "--generate-unit-tests" and ended[mode].code == 2)), mode


@pytest.fixture(scope="module")
def unfinished(workflow, tmp_path_factory):
    results, folder = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("modes")
    return look(workflow, "smoke", results, folder), results / "smoke", folder


def test_the_modes_show_a_study_that_has_not_begun(unfinished):
    ended, study_folder, folder = unfinished
    check_views(ended, "smoke", study_folder)
    check_packing(ended, folder)
    check_notes(ended)
    assert not study_folder.exists()


def test_modes_that_need_results_say_what_is_missing(unfinished):
    ended, *_ = unfinished
    assert ended["--report"].code == 1
    assert "report/index.html marked for report but does not exist" in ended["--report"].err
    assert ended["--generate-unit-tests"].code == 2
    *_, line = ended["--generate-unit-tests"].err.splitlines()
    assert line.startswith("mobilebert: --generate-unit-tests copies the files of a finished study, but ")
    assert ended["--cleanup-metadata"].code == 1
    assert "the metadata was not present" in ended["--cleanup-metadata"].err
    assert not [what for what in ("code", "input", "params") if ended[f"--list-changes {what}"].out]


def test_every_job_of_a_dry_run_says_why_it_runs_in_one_short_line(unfinished):
    ended, *_ = unfinished
    for study, mode in (("smoke", "-n"), ("smoke", "triggers"), ("paper", "paper")):
        assert ended[mode].out.count("    reason: it has no record yet\n") == len(jobs_of(study))
        assert max(map(len, ended[mode].out.splitlines())) <= WIDEST


def test_every_rule_says_above_it_what_it_reads_and_writes(workflow):
    files = [workflow.root / "Snakefile", *(workflow.root / "workflows/rules").glob("*.smk")]
    rules = [head for file in files for head in re.findall(r"((?:^#.*\n)*)(?:^for .*\n\n)?^ *rule\b.*:$", file.read_text(), re.M)]
    assert len(rules) == len(STAGES) + 2  # the tables, and the default target
    assert not [head for head in rules if not re.match(r"# Reads .*; writes ", head.replace("\n# ", " "))]


# --- the progress bar, with a workflow of two jobs that run no program of ours


TINY = """
rule all:
    input: "good", "bad"
rule good:
    output: "good"
    log: "good.log"
    shell: "echo fine > {log}; touch {output}"
rule bad:
    input: "good"
    output: "bad"
    log: "bad.log"
    shell: "echo it broke > {log}; exit 3"
"""


@pytest.fixture(scope="module")
def tiny(workflow, tmp_path_factory):
    """Return how runs of the tiny workflow end, one after the other, with the progress bar."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "Snakefile").write_text(TINY)
    words = ["--cores", "1", "--logger", "mobilebert", "--workflow-profile", "none"]
    runs = {"run": [], "again": ["good"], "unknown": ["no-such-file"], "dry": ["--dry-run"]}
    commands = {name: [*targets, *words] for name, targets in runs.items()}
    return workflow.look(commands, folder, modules=f"{workflow.root}/workflows/plugins")


def test_the_progress_of_a_run_is_a_line_a_job_and_the_log_of_one_that_fails(tiny):
    assert tiny["run"].code == 1
    lines = [re.sub(r"\d\d:\d\d", "TIME", line) for line in tiny["run"].err.splitlines()]
    assert lines[-4:] == [
        "[1/2] good: TIME (TIME so far, about TIME left)",
        "failed: bad; log: bad.log",
        "    it broke",
        "1 of 2 jobs in TIME; failed: bad",
    ]
    assert len(lines) <= 6, lines  # Snakemake prints a line or two before it starts a logger


def test_an_error_of_snakemake_a_run_without_jobs_and_a_dry_run_are_shown(tiny):
    assert "MissingRuleException" in tiny["unknown"].err
    assert "Nothing to be done" in tiny["again"].err
    assert "rule bad:" in tiny["dry"].out
