"""Run the smoke study from nothing, and change what makes parts of it run again."""

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from test_modes import check_notes, check_packing, check_views, jobs_of, look

from mobilebert.compare.baseline import read_baseline
from mobilebert.compare.differences import own_change
from mobilebert.compare.gate import direction, values_of
from mobilebert.compare.open import open_run
from mobilebert.compare.rule import judge_fresh
from mobilebert.compare.side import side
from mobilebert.jobs.freshness import VIEWS
from mobilebert.jobs.record import read_record
from mobilebert.study import expectations
from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.sections import Expectation
from mobilebert.study.stages import STAGES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1500)  # other tests run beside the study


@pytest.fixture(scope="module")
def smoke(workflow, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    run = workflow.run("smoke", results)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return results


def every_record(results, study="smoke"):
    files = [file for file in (results / study).rglob("result.json") if "mlartifacts" not in file.parts]
    return {record.id: record for record in map(read_record, files)}


def test_every_stage_left_a_record_that_ended_well(smoke):
    found = every_record(smoke)
    stages = {key.split("/")[0] for key in found}
    assert stages == {*STAGES} - {"checkpoint"}
    assert {record.status for key, record in found.items() if key != "latency"} == {"ok"}
    assert found["latency"].status in ("ok", "void")  # void if other processes shared the machine
    assert all(record.seconds > 0 and record.versions["python"] for record in found.values())


def test_the_run_is_one_seed_of_the_committed_baseline(smoke):
    """The experiment is the baseline's, and each gated metric lies where one more seed would."""
    baseline = read_baseline(ROOT / "reports/baselines/smoke.json")
    base, run = baseline.side("baseline"), side("smoke", [open_run(str(smoke / "smoke"))])
    for job in base.jobs:
        hint = "freeze the baseline again: mobilebert seeds 0-19, then mobilebert baseline --accept REASON"
        assert (job, own_change(job, base, run)) == (job, None), hint
    for metric in baseline.gate.metrics:
        known = [value for value in values_of(base, metric) if value is not None]
        found = [value for value in values_of(run, metric) if value is not None]
        if not metric.startswith("latency"):  # other tests run beside the study
            assert (metric, judge_fresh(known, found, len(baseline.gate.metrics), direction(metric))) == (metric, "pass")


def test_every_metric_of_a_record_is_known_to_expectations(smoke):
    graph = build_graph(load_study("smoke"))
    for key, record in every_record(smoke).items():
        if key not in VIEWS:
            assert record.metrics.keys() == expectations.metrics(graph[key]).keys(), key


def test_the_student_learns_and_its_controls_lose(smoke):
    found = every_record(smoke)
    loss = {
        key: found[f"distill/{key}"].metrics["heldout_mlm_loss"]
        for key in ("mobilebert", "control-fresh-student", "control-shuffled-teacher")
    }
    assert loss["mobilebert"] + 0.1 < min(loss["control-fresh-student"], loss["control-shuffled-teacher"])
    assert found["check"].metrics["failed"] == 0


def test_every_trained_row_is_above_its_majority_and_the_bag_of_words_is_not(smoke):
    tuned = {key: record.metrics for key, record in every_record(smoke).items() if key.startswith("finetune/")}
    bag = tuned.pop("finetune/bag-of-embeddings/sst2")
    assert abs(bag["accuracy"] - bag["majority"]) <= 0.05
    assert len([key for key in tuned if key.endswith("/sst2")]) == 9
    accuracies = {key: metrics for key, metrics in tuned.items() if "accuracy" in metrics}
    assert len(accuracies) == 15
    for key, metrics in accuracies.items():
        assert metrics["accuracy"] > metrics["majority"] + 0.2, key
    assert {key: metrics["failed_share"] for key, metrics in tuned.items()} == dict.fromkeys(tuned, 0)


def test_the_study_expects_something_of_every_job_that_it_scores():
    """A row that no expectation names could learn nothing, and the study would still succeed."""
    study = load_study("smoke")
    sides = [side for item in study.expect for side in (item.metric, item.above, item.below) if isinstance(side, str)]
    named = {key for side in sides for key in Expectation.records(side)}
    assert {key for key in jobs_in_scope(study, build_graph(study)) if key.startswith(("finetune/", "quantize/"))} <= named


def test_every_classifier_shows_the_share_of_its_classes(smoke):
    for key, record in every_record(smoke).items():
        if key.startswith(("finetune/", "quantize/")) and not key.endswith("stsb"):
            assert sum(record.details["shares"]["validation"]) == pytest.approx(1)


def test_ax_is_predicted_beside_mnli(smoke):
    import pandas as pd

    frame = pd.read_parquet(smoke / "smoke/finetune/mobilebert/mnli/predictions.parquet")
    assert set(frame["split"]) == {"validation", "validation_mismatched", "ax"}


def test_counts_of_held_out_and_dropped_documents(smoke):
    metrics = every_record(smoke)["data"].metrics
    assert metrics["documents_heldout"] > 0
    assert metrics["documents_dropped"] > 0
    total = sum(metrics[f"documents_{name}"] for name in ("heldout", "dropped", "train", "empty"))
    assert total == metrics["documents_read"]


def test_the_report_has_nine_tables_with_published_beside_measured(smoke):
    text = (smoke / "smoke/report/tables.md").read_text()
    assert re.findall(r"^## (Table \d)$", text, re.M) == [f"Table {number}" for number in range(1, 10)]
    assert "not run" in text
    assert "published" in text
    assert "scaled" in text
    page = (smoke / "smoke/report/index.html").read_text()
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)


def test_mlflow_holds_one_parent_and_a_child_a_record(smoke):
    with sqlite3.connect(f"file:{smoke}/smoke/mlflow.db?mode=ro", uri=True) as store:
        children = store.execute("select count(*) from tags where key = 'job'").fetchone()[0]
        below = store.execute("select count(*) from tags where key = 'run'").fetchone()[0]
        runs = store.execute("select count(*) from runs").fetchone()[0]
    found = every_record(smoke)
    assert children == len([key for key in found if key not in ("report", "track", "check")])
    assert below == sum(len(record.config["seeds"]) for key, record in found.items() if key.startswith("finetune/"))
    assert runs == children + below + 1


def test_a_second_run_has_nothing_to_do(workflow, smoke):
    run = workflow.run("smoke", smoke)
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout + run.stderr


def test_one_tasks_rate_reruns_that_task_and_the_report(workflow, smoke, tmp_path):
    study = (workflow.root / "workflows/config/smoke.yaml").read_text()
    (tmp_path / "smoke.yaml").write_text(study.replace("  tasks:\n", "  tasks:\n    mrpc: {learning_rate: 2e-3}\n"))
    assert workflow.scheduled(tmp_path / "smoke.yaml", smoke) == {"finetune/mobilebert/mrpc", "report", "track", "check"}


def test_records_from_another_machine_are_accepted_by_fingerprint(workflow, smoke, tmp_path):
    """File times do not matter; a wrong fingerprint schedules the job again."""
    copied = tmp_path / "copied"
    shutil.copytree(smoke, copied, copy_function=shutil.copyfile)
    assert workflow.scheduled("smoke", copied) == set()
    file = copied / "smoke/finetune/mobilebert/sst2/result.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    # Records that read this one are kept: a fingerprint is of the configuration, and the same job
    # gives the same result.
    assert "finetune/mobilebert/sst2" in workflow.scheduled("smoke", copied)
    file.write_text("{")
    assert "finetune/mobilebert/sst2" in workflow.scheduled("smoke", copied)


def test_a_record_is_current_without_the_records_of_its_inputs(workflow, smoke, tmp_path):
    """Results may come without the records behind them, which run again only if needed."""
    copied = tmp_path / "copied"
    shutil.copytree(smoke, copied, copy_function=shutil.copyfile)
    (copied / "smoke/distill/mobilebert-jkt/result.json").unlink()
    assert workflow.scheduled("smoke", copied) == set()
    (copied / "smoke/finetune/mobilebert-jkt/sst2/result.json").unlink()
    (copied / "smoke/check/passed").unlink()
    made = workflow.scheduled("smoke", copied)
    assert {"distill/mobilebert-jkt", "finetune/mobilebert-jkt/sst2"} <= made
    assert made <= {"distill/mobilebert-jkt", "finetune/mobilebert-jkt/sst2", "report", "track", "check"}


def test_a_table_target_runs_only_its_missing_jobs(workflow, smoke):
    made = workflow.scheduled("smoke", smoke, "table_8")
    assert {"finetune/mobilebert-akt/mnli", "finetune/mobilebert-jkt/squad_v1.1"} <= made
    assert {key.split("/")[0] for key in made} == {"finetune"}
    assert "finetune/mobilebert-akt/sst2" not in made


@pytest.fixture(scope="module")
def modes(workflow, smoke, tmp_path_factory):
    """Yield (how every mode of Snakemake ends on the finished study, the folder it wrote to)."""
    folder = tmp_path_factory.mktemp("modes")
    written = workflow.root / "build" / folder.name
    shutil.rmtree(written, ignore_errors=True)
    ended = look(workflow, "smoke", smoke, folder)
    if written.exists():
        shutil.move(written, folder / "unit-tests")
    return ended, folder


def test_the_modes_show_the_whole_finished_study(smoke, modes):
    ended, folder = modes
    check_views(ended, "smoke", smoke / "smoke")
    check_packing(ended, folder)
    check_notes(ended)
    assert not [mode for mode, one in ended.items() if one.code != 0]


def test_other_rerun_triggers_and_snakemakes_own_notes_change_nothing(modes):
    ended, _ = modes
    assert "Nothing to be done" in ended["-n"].out
    assert "Nothing to be done" in ended["triggers"].out
    assert ended["--list-changes code"].out == ended["--list-changes input"].out == ""


def test_the_report_of_snakemake_holds_page_and_tables(modes):
    page = (modes[1] / "report.html").read_text()
    assert all(words in page for words in ("index.html", "tables.md", "Tables 1 to 9 of the paper", "reproduced: study"))


def test_unit_tests_are_generated_for_every_rule_of_a_finished_study(modes):
    files = {file.name for file in (modes[1] / "unit-tests").glob("test_*.py")}
    assert files == {f"test_{stage}.py" for stage in {job.partition("/")[0] for job in jobs_of("smoke")}}
