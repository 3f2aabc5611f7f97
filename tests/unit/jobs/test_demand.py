"""The workflow runs what is needed and no more.

The study is the chain data -> pretrain -> finetune -> quantize, with the view report.
"""

import itertools
import os

import pytest

from mobilebert.jobs.demand import Demand, Forced
from mobilebert.jobs.execute import execute_job
from mobilebert.jobs.freshness import current_records
from mobilebert.jobs.staleness import because
from mobilebert.study.code_hash import digest
from mobilebert.study.job import Graph, Job

NOTHING = Forced()
CHAIN = ("data", "pretrain/m", "finetune/m/sst2", "quantize/m/sst2")


def chain() -> Graph:
    graph, inputs = Graph(), ()
    for key in CHAIN:
        stage, _, name = key.partition("/")
        graph[key] = Job(stage, name, {}, inputs, digest(key))
        inputs = (key,)
    graph["report"] = Job("report", "", {}, ("finetune/m/sst2", "quantize/m/sst2"), digest("report"))
    return graph


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results, graph = tmp_path_factory.mktemp("results"), chain()
    for job in graph.values():
        execute_job(job, "s", results, graph, lambda context: None)
    for name in ("index.html", "tables.md"):
        (results / "s/report" / name).touch()
    return results, graph


def demand(finished, missing=(), stale=()):
    """Return the demand of the finished study, with some records gone and others out of date."""
    results, graph = finished
    found = Demand(results, "s", graph, current_records(results, "s", graph))
    assert set(found.freshness.values()) == {"current"}
    found.freshness |= dict.fromkeys(missing, "missing") | dict.fromkeys(stale, "stale")
    return found


def to_run(found: Demand, forced: Forced = NOTHING) -> set[str]:
    """Return the jobs that Snakemake runs: it follows the inputs of jobs that are not current."""
    wanted, seen = ["report", "quantize/m/sst2"], set()
    while wanted:
        key = wanted.pop()
        if key not in seen and not found.is_up_to_date(key, forced):
            seen.add(key)
            wanted += found.graph[key].inputs
    return seen


def test_a_finished_study_runs_nothing(finished):
    assert to_run(demand(finished)) == set()


@pytest.mark.parametrize("count", range(1, 3))
def test_a_missing_record_runs_if_what_was_computed_from_it_is_not_current(finished, count):
    for missing in itertools.combinations(CHAIN, count):
        needed = to_run(demand(finished, missing=missing))
        last = max(map(CHAIN.index, missing))
        if last < CHAIN.index("finetune/m/sst2"):
            assert needed == set(), missing  # the score stands for them
        else:
            expected = {CHAIN[last], "report"}
            while last and CHAIN[last - 1] in missing:
                last -= 1
                expected.add(CHAIN[last])
            assert needed == expected, missing


def test_attention_maps_cost_no_training_and_stand_for_no_model(finished):
    results, graph = finished[0], Graph(finished[1])
    graph["attention/m"] = Job("attention", "m", {}, ("pretrain/m",), digest("attention"))
    found = Demand(results, "s", graph, current_records(results, "s", graph))
    assert not found.is_settled("attention/m", NOTHING)  # all that it reads is there
    found.freshness["pretrain/m"] = "missing"
    assert found.is_settled("attention/m", NOTHING)
    found.freshness |= dict.fromkeys(("finetune/m/sst2", "quantize/m/sst2"), "missing")
    assert not found.is_settled("attention/m", NOTHING)  # the model is made, so its maps are too
    found.freshness["attention/m"] = "current"
    assert not found.is_settled("pretrain/m", NOTHING)


def test_a_stale_record_runs_and_a_view_of_it_too(finished):
    found = demand(finished, stale=["finetune/m/sst2", "quantize/m/sst2"])
    assert to_run(found) == {"finetune/m/sst2", "quantize/m/sst2", "report"}


def test_a_job_whose_product_was_deleted_runs(finished):
    page = finished[0] / "s/report/index.html"
    page.unlink()
    try:
        assert to_run(demand(finished)) == {"report"}
    finally:
        page.touch()


def test_force_takes_rules_files_and_everything(finished):
    found = demand(finished)
    record = str(found.record("quantize/m/sst2"))
    for forced in (Forced(frozenset(["quantize"])), Forced(frozenset([record]))):
        assert to_run(found, forced) == {"quantize/m/sst2", "report"}
        assert found.is_up_to_date("finetune/m/sst2", forced)
    assert to_run(found, Forced(everything=True)) == {*CHAIN, "report"}


def test_a_refused_job_runs_again_only_if_something_is_forced(finished):
    found = demand(finished)
    found.current = found.current | {"data": found.current["data"].model_copy(update={"status": "refused"})}
    assert found.is_up_to_date("data", NOTHING)
    assert not found.is_up_to_date("data", Forced(frozenset(["latency"])))


def test_the_newest_time_covers_jobs_and_tables_alone(finished):
    results, graph = finished
    found = demand(finished)
    for folder, time, counts in (("tables", 4e9, True), ("elsewhere", 5e9, False)):
        file = results / "s" / folder / "file"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (time, time))
        assert (found.newest() == time) == counts
    assert Demand(results, "empty", graph, {}).newest() == 0


def test_every_job_that_runs_says_why_and_no_other_does(finished):
    forced = Forced(frozenset({"finetune"}))
    for found, how in (
        (demand(finished), NOTHING),
        (demand(finished), forced),
        (demand(finished, missing=["quantize/m/sst2", "data"]), NOTHING),
    ):
        for key in found.graph:
            assert bool(because(found, key, how)) == (not found.is_up_to_date(key, how)), (key, how)


def test_the_reason_names_what_is_missing_stale_deleted_forced_or_shown(finished, monkeypatch):
    found = demand(finished, missing=["quantize/m/sst2"], stale=["pretrain/m"])
    assert because(found, "quantize/m/sst2", NOTHING) == "it has no record yet"
    assert because(found, "data", Forced(frozenset({"data"}))) == "the command line forces it"
    monkeypatch.setitem(found.graph, "pretrain/m", Job("pretrain", "m", {"steps": 5}, ("data",), digest("other")))
    assert because(found, "pretrain/m", NOTHING).startswith("config.steps: 5, was not there")
    assert because(found, "report", NOTHING) == "it shows quantize/m/sst2, which runs too"
    monkeypatch.setattr(found, "outputs", lambda key: [found.record(key), found.record(key).with_name("gone.html")])
    assert because(found, "report", NOTHING) == "deleted: gone.html"
