"""Report, track and check as stages: what they leave in the results folder."""

import json

import pytest

from mobilebert import records
from mobilebert.config import Study
from mobilebert.jobs import Graph, Job
from mobilebert.settings import Expectation
from mobilebert.stages import check, report, track

METRIC = "finetune/mobilebert/qnli:accuracy"
STUDY = Study(
    schema=1,
    description="one record",
    expect=(
        Expectation(what="learns", metric=METRIC, above=0.5, reason="r"),
        Expectation(what="is quantized", metric="quantize/mobilebert/qnli:accuracy", above=0.5, reason="r"),
    ),
)


@pytest.fixture
def graph(tmp_path):
    """A graph of one fine-tuning job, its record written, and the three stages over it."""
    graph = Graph()
    tuned = Job("finetune", "mobilebert/qnli", {}, (), "a" * 64)
    graph[tuned.id] = tuned
    for stage in ("report", "track", "check"):
        graph[stage] = Job(stage, "", {}, (tuned.id,), stage[0] * 64)

    def finetune(run):
        run.metrics["accuracy"] = 0.905

    records.execute(tuned, "study", tmp_path, graph, finetune)
    return graph


def execute(stage, graph, results):
    return records.execute(graph[stage.__name__.rpartition(".")[2]], "study", results, graph, lambda run: stage.run(run, STUDY))


def test_report_writes_page_and_tables(graph, tmp_path):
    record = execute(report, graph, tmp_path)
    assert set(record.artefacts) == {"index.html", "tables.md"}
    assert "90.5 (n=1), match" in (tmp_path / "study" / "report" / "tables.md").read_text()
    assert record.metrics["not_run"] > 100
    page = (tmp_path / "study" / "report" / "index.html").read_text()
    assert "1 of 2 hold" in page
    execute(report, graph, tmp_path)
    assert (tmp_path / "study" / "report" / "index.html").read_text() == page


def test_check_fails_what_is_void_and_counts_nothing_that_is_only_shown(graph, tmp_path, monkeypatch):
    expect = (
        *STUDY.expect,
        Expectation(what="void", metric=METRIC, above=0.5, void_unless="is quantized", reason="r"),
        Expectation(what="shown", metric=METRIC, above=0.99, judged=False, reason="r"),
    )
    monkeypatch.setattr(f"{__name__}.STUDY", STUDY.model_copy(update={"expect": expect}))
    record = execute(check, graph, tmp_path)
    assert record.metrics == {"passed": 1, "failed": 2, "failed_scores": 0}
    assert [item["outcome"] for item in record.details["verdicts"]] == ["pass", "fail", "void", "shown"]
    assert record.details["lines"][2] == "void: void (fail: is quantized)"
    execute(report, graph, tmp_path)
    assert "1 of 3 hold" in (tmp_path / "study" / "report" / "index.html").read_text()


def test_check_counts_and_names_what_failed(graph, tmp_path):
    record = execute(check, graph, tmp_path)
    assert record.metrics == {"passed": 1, "failed": 1, "failed_scores": 0}
    assert [item["outcome"] for item in record.details["verdicts"]] == ["pass", "fail"]
    assert record.details["lines"][1] == ("fail: is quantized (missing: no current record of quantize/mobilebert/qnli)")
    assert json.loads((tmp_path / "study" / "check" / "result.json").read_text())["status"] == "ok"


def test_track_ingests_each_record_once(graph, tmp_path):
    assert execute(track, graph, tmp_path).metrics == {"added": 1, "completed": 0, "there": 0}
    assert execute(track, graph, tmp_path).metrics == {"added": 0, "completed": 0, "there": 1}
