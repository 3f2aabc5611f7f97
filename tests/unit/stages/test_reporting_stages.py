"""Report, track and check as stages: the files that they leave in the results folder."""

import json

import pytest

from mobilebert.cli.stages import _summary
from mobilebert.jobs.execute import execute_job
from mobilebert.jobs.freshness import record_file
from mobilebert.jobs.record import read_record
from mobilebert.stages import check, report, track
from mobilebert.study.job import Graph, Job
from mobilebert.study.schema import Study
from mobilebert.study.sections import Expectation

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
    """Return a graph of one recorded fine-tuning job and the three stages over it."""
    graph = Graph()
    tuned = Job("finetune", "mobilebert/qnli", {}, (), "a" * 64)
    graph[tuned.id] = tuned
    for stage in ("report", "track", "check"):
        graph[stage] = Job(stage, "", {}, (tuned.id,), stage[0] * 64)

    def finetune(run):
        run.metrics["accuracy"] = 0.905

    execute_job(tuned, "study", tmp_path, graph, finetune)
    return graph


def execute(stage, graph, results):
    return execute_job(
        graph[stage.__name__.rpartition(".")[2]], "study", results, graph, lambda context: stage.main(context, STUDY)
    )


def test_report_writes_page_and_tables(graph, tmp_path):
    record = execute(report, graph, tmp_path)
    assert set(record.artefacts) == {"index.html", "tables.md"}
    assert "90.5 (n=1), match" in (tmp_path / "study" / "report" / "tables.md").read_text()
    assert record.metrics["not_run"] > 100
    page = (tmp_path / "study" / "report" / "index.html").read_text()
    assert "1 of 2 hold" in page
    execute(report, graph, tmp_path)
    assert (tmp_path / "study" / "report" / "index.html").read_text() == page


def test_check_fails_void_expectations_and_ignores_those_only_shown(graph, tmp_path, monkeypatch):
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


def edit(tmp_path):
    file = tmp_path / "study/finetune/mobilebert/qnli/result.json"
    file.write_text(file.read_text().replace("0.905", "0.915"))


def test_a_record_edited_by_hand_is_named_by_every_view(graph, tmp_path, capsys):
    edit(tmp_path)
    checked = execute(check, graph, tmp_path)
    assert checked.metrics["failed"] == 3  # the record, and both expectations
    assert checked.details["lines"][0] == (
        "fail: learns (edited: the record of finetune/mobilebert/qnli was changed after it was written)"
    )
    assert any(line.startswith("edited: finetune/mobilebert/qnli (") for line in checked.details["lines"])
    reported = execute(report, graph, tmp_path)
    assert reported.metrics["measured_edited"] == reported.metrics["measured"] > 0
    tables, page = ((tmp_path / "study/report" / name).read_text() for name in ("tables.md", "index.html"))
    assert "| edited [1] |" in tables
    assert "(n=1)" not in tables + page
    assert '<span class="verdict bad">edited: changed after it was written' in page
    assert execute(track, graph, tmp_path).metrics == {"added": 0, "completed": 0, "there": 0}
    assert "mobilebert: finetune/mobilebert/qnli: edited after it was written; left out of MLflow" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "problem"), [("{", "not a record of schema 1: "), (None, "cannot be read: ")])
def test_check_names_a_damaged_record_that_no_expectation_names_and_does_not_fail_it(graph, tmp_path, content, problem):
    other = Job("finetune", "mobilebert/rte", {}, (), "b" * 64)
    graph[other.id] = other
    path = record_file(tmp_path, "study", other)
    assert not any(line.startswith("damaged") for line in execute(check, graph, tmp_path).details["lines"])  # none is there
    if content is None:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_text(content)
    checked = execute(check, graph, tmp_path)
    assert checked.metrics == {"passed": 1, "failed": 1, "failed_scores": 0}  # as without it
    (line,) = [line for line in checked.details["lines"] if line.startswith("damaged")]
    assert line.startswith(f"damaged: {path} ({problem}")
    assert line.endswith("; delete it to make it again)")


def test_an_unlearnt_score_is_counted_and_named(graph, tmp_path):
    def finetune(run):
        run.metrics["accuracy"] = 0.905
        run.details["statuses"] = ["failed", "ok"]

    (tmp_path / "study/finetune/mobilebert/qnli/result.json").unlink()
    execute_job(graph["finetune/mobilebert/qnli"], "study", tmp_path, graph, finetune)
    checked = execute(check, graph, tmp_path)
    assert checked.metrics == {"passed": 1, "failed": 1, "failed_scores": 1}
    assert checked.details["lines"][-2:] == [
        "not learnt: finetune/mobilebert/qnli (1 of 2 runs failed)",
        "1 passed, 1 failed; 1 of 1 scores are of models that have not learnt",
    ]
    reported = execute(report, graph, tmp_path)
    assert reported.metrics["measured_failed"] == reported.metrics["measured"] == 3
    page = (tmp_path / "study/report/index.html").read_text()
    assert '<span class="verdict bad">failed [1]</span>' in page
    assert '<span class="verdict bad">failed: 1 of 2 runs failed</span>' in page
    assert "<dt>jobs</dt><dd>1 of 1; 1 failed (finetune/mobilebert/qnli)</dd>" in page
    assert "3 of 3 measured cells are of models that did not learn." in page
    assert reported.details["summary"].startswith("3 measured (3 failed), ")


def test_texts_of_a_study_are_escaped(graph, tmp_path, monkeypatch):
    changed = STUDY.model_copy(update={"description": "# no heading\n<script>alert(1)</script> | [x](y) `z`"})
    monkeypatch.setattr(f"{__name__}.STUDY", changed)
    execute(report, graph, tmp_path)
    lines = (tmp_path / "study/report/tables.md").read_text().splitlines()
    assert lines[2] == r"\# no heading \<script\>alert(1)\</script\> \| \[x\](y) \`z\`"


def test_what_a_stage_prints(graph, tmp_path):
    tuned = graph["finetune/mobilebert/qnli"]
    record = read_record(record_file(tmp_path, "study", tuned))
    again = read_record(record_file(tmp_path, "study", tuned))
    assert _summary(again, record) == f'finetune/mobilebert/qnli: ok, already done (made {record.started}) {{"accuracy": 0.905}}'
    assert _summary(record, None).startswith("finetune/mobilebert/qnli: ok in ")
    record.details["statuses"] = ["failed"]
    assert _summary(record, None).startswith("finetune/mobilebert/qnli: failed (1 of 1 runs failed) in ")
    reported = execute(report, graph, tmp_path)
    assert " 3 measured (2 match, 1 not judged), " in _summary(reported, None)


def test_track_ingests_each_record_once(graph, tmp_path):
    assert execute(track, graph, tmp_path).metrics == {"added": 1, "completed": 0, "there": 0}
    assert execute(track, graph, tmp_path).metrics == {"added": 0, "completed": 0, "there": 1}
