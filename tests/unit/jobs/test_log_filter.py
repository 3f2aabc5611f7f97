"""Snakemake logs a job in short lines, which say in our words why it runs."""

import logging

import pytest

from mobilebert.jobs.log_filter import LINE, rewrite, shorten


@pytest.fixture
def logged():
    """Return (a logger, the records that it has logged)."""
    records, logger = [], logging.Logger("snakemake")
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    return logger, records


def job(**fields):
    return {"event": "job_info", "rule_name": "finetune", "wildcards": {"model": "m", "task": "sst2"}, **fields}


def test_the_reason_of_a_job_is_ours_and_one_short_line(logged):
    logger, records = logged
    rewrite(logger, lambda rule, wildcards: f"{rule} {wildcards['task']}\n" + "changed " * 1000)
    logger.info(None, extra=job(reason="Updated input files: /tmp/stale-records-x", input=[], output=["result.json"]))
    (record,) = records
    assert record.reason.startswith("finetune sst2 changed changed")
    assert len(record.reason) <= LINE
    assert record.output == ["result.json"]


def test_without_a_reason_of_ours_snakemakes_is_cut(logged):
    logger, records = logged
    rewrite(logger, lambda rule, wildcards: "")
    logger.info(None, extra=job(reason="Input files updated by another job: " + ", ".join(map(str, range(1000)))))
    assert records[0].reason.startswith("Input files updated by another job: 0, 1, 2,")
    assert len(records[0].reason) <= LINE


def test_other_records_pass_as_they_are(logged):
    logger, records = logged
    rewrite(logger, lambda rule, wildcards: "")
    logger.warning("x" * 1000)
    assert records[0].msg == "x" * 1000


def test_a_second_workflow_in_a_process_replaces_the_filter_of_the_first(logged):
    logger, records = logged
    rewrite(logger, lambda rule, wildcards: pytest.fail("the first workflow has ended"))
    rewrite(logger, lambda rule, wildcards: "second")
    logger.info(None, extra=job(reason="Forced execution"))
    assert records[0].reason == "second"


def test_a_list_of_files_names_the_first_and_counts_the_others():
    files = [f"results/finetune/{number:03}/result.json" for number in range(170)]
    shown = shorten(files)
    assert shown[:-1] == files[: len(shown) - 1]
    assert shown[-1] == f"and {170 - len(shown) + 1} more"
    assert LINE / 2 < len(", ".join(shown[:-1])) <= LINE
    assert shorten(files[:3]) == files[:3]
    assert shorten(["x" * 500, "y"]) == ["x" * 500, "and 1 more"]
