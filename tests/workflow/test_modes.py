"""Snakemake's modes that only look start without --cores, and show every job of a study."""

import re

import pytest

from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.stages import VIEWS


def jobs_of(study):
    loaded = load_study(str(study))
    return {*jobs_in_scope(loaded, build_graph(loaded)), *VIEWS}


def check_dag(text, study):
    stages = re.findall(r'\[label = "(\w+)', text)
    assert sorted(stages) == sorted(["all", *(job.partition("/")[0] for job in jobs_of(study))])


def check_summary(text, study, out):
    files = {line.split("\t")[0] for line in text.splitlines()[1:]}
    assert files >= {f"{out}/{job}/{'passed' if job == 'check' else 'result.json'}" for job in jobs_of(study)}


def test_the_modes_show_a_study_that_has_not_begun(workflow, tmp_path):
    check_dag(workflow.look(workflow.mini, tmp_path, "--dag"), workflow.mini)
    check_summary(workflow.look(workflow.mini, tmp_path, "--summary"), workflow.mini, tmp_path / "mini")


@pytest.mark.parametrize("mode", ["--d3dag", "--list-changes=code", "--unlock"])
def test_other_modes_start_without_cores(workflow, tmp_path, mode):
    workflow.look(workflow.mini, tmp_path, *mode.split("="))


def test_the_report_of_an_unfinished_study_says_what_is_missing(workflow, tmp_path):
    with pytest.raises(AssertionError, match=r"report/index\.html marked for report but does not exist"):
        workflow.look(workflow.mini, tmp_path, "--report", str(tmp_path / "report.html"))
