"""Snakemake's modes that only look show every job of a study, before it ran and after."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.stages import VIEWS

pytestmark = pytest.mark.xdist_group("modes")  # one process finishes the study, once
STATES = ["unfinished", "finished"]


@pytest.fixture(scope="module")
def places(workflow, tmp_path_factory):
    """Return the results folders of a study that has not begun and of one that has ended."""
    empty, full = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("full")
    run = workflow.run(workflow.mini, full)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return {"unfinished": empty, "finished": full}


@pytest.fixture(scope="module")
def jobs():
    study = load_study(str(Path(__file__).with_name("mini.yaml")))
    return {*jobs_in_scope(study, build_graph(study)), *VIEWS}


def look(workflow, results, *mode):
    """Run Snakemake as a user types it, without --cores."""
    options = ["--config", f"study={workflow.mini}", f"results={results}"]
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *mode, *options], cwd=workflow.root, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("state", STATES)
def test_the_graph_of_jobs_has_every_job(workflow, places, jobs, state):
    shown = look(workflow, places[state], "--dag")
    assert shown.returncode == 0, shown.stderr
    names = re.findall(r'\[label = "(\w+)', shown.stdout)
    assert sorted(names) == sorted(["all", *(job.partition("/")[0] for job in jobs)])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", ["--summary", "--detailed-summary"])
def test_a_summary_has_every_record(workflow, places, jobs, mode, state):
    shown = look(workflow, places[state], mode)
    assert shown.returncode == 0, shown.stderr
    files = {line.split("\t")[0] for line in shown.stdout.splitlines()[1:]}
    wanted = {f"{places[state]}/mini/{job}/{'passed' if job == 'check' else 'result.json'}" for job in jobs}
    assert wanted <= files


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", ["--rulegraph", "--filegraph", "--d3dag", "--list-changes=code", "--list-untracked", "--unlock"])
def test_other_modes_start_without_cores(workflow, places, mode, state):
    shown = look(workflow, places[state], *mode.split("="))
    assert shown.returncode == 0, shown.stderr


def test_the_report_holds_page_and_tables(workflow, places, tmp_path):
    shown = look(workflow, places["finished"], "--report", str(tmp_path / "report.html"))
    assert shown.returncode == 0, shown.stderr
    page = (tmp_path / "report.html").read_text()
    assert all(words in page for words in ("index.html", "tables.md", "Tables 1 to 9 of the paper", "reproduced: study"))


def test_the_report_of_an_unfinished_study_says_what_is_missing(workflow, places, tmp_path):
    shown = look(workflow, places["unfinished"], "--report", str(tmp_path / "report.html"))
    assert shown.returncode == 1
    assert "report/index.html marked for report but does not exist" in shown.stderr
