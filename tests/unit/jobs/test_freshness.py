"""Why a record is stale: the key, input or module that changed, in one bounded line."""

import json

import pytest

from mobilebert.jobs.freshness import record_file
from mobilebert.jobs.record import read_record, sealed
from mobilebert.jobs.staleness import LINE, LINES, explain, lines, why
from mobilebert.study.code_hash import module_hashes
from mobilebert.study.job import Graph, Job

DATA = Job("data", "", {}, (), "d" * 64)
TUNED = Job("finetune", "m/sst2", {"learning_rate": 0.001, "tasks": {"length": 64}, "seeds": [0]}, ("data",), "f" * 64)


@pytest.fixture
def graph():
    graph = Graph()
    for job in (DATA, TUNED):
        graph[job.id] = job
    return graph


def write(folder, job=TUNED, **changes):
    """Write a record of the job with `changes`, and read it back."""
    content = {
        "schema": 1, "study": "s", "stage": job.stage, "name": job.name, "status": "ok", "fingerprint": "0" * 64,
        "config": job.config, "inputs": {"data": DATA.fingerprint}, "modules": module_hashes(job.stage), **changes,
    }  # fmt: skip
    file = record_file(folder, "s", job)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(sealed(content)))
    return read_record(file)


MODULES = module_hashes("finetune")
LOOP = "mobilebert.training.loop"


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"config": {**TUNED.config, "learning_rate": 0.002}}, ["config.learning_rate: 0.001, was 0.002"]),
        ({"config": {**TUNED.config, "tasks": {"length": 32}}}, ["config.tasks.length: 64, was 32"]),
        ({"config": {**TUNED.config, "old": 1}}, ["config.old: no longer there, was 1"]),
        ({"config": {"learning_rate": 0.001, "seeds": [0]}}, ["config.tasks: {'length': 64}, was not there"]),
        ({"inputs": {"data": "e" * 64}}, ["input data changed"]),
        ({"inputs": {"teacher": "e" * 64}}, ["input data is new", "input teacher is no longer read"]),
        ({"modules": {**MODULES, LOOP: "0" * 16}}, [f"module {LOOP} changed"]),
        ({"modules": {key: value for key, value in MODULES.items() if key != LOOP}}, [f"module {LOOP} is new"]),
        ({"modules": {**MODULES, "mobilebert.gone": "0"}}, ["module mobilebert.gone is no longer used"]),
        ({}, ["the code of the stage changed"]),
        ({"modules": {}}, ["the code changed (the record names no modules)"]),
        ({"name": "m/mrpc"}, ["a record of finetune/m/mrpc"]),
        ({"fingerprint": TUNED.fingerprint}, []),
        ({"fingerprint": TUNED.fingerprint, "status": "refused", "reason": "no data"}, ["refused before: no data"]),
    ],
)
def test_differences_from_the_record_are_named(graph, tmp_path, changes, reasons):
    assert why(write(tmp_path, **changes), TUNED, graph) == reasons


def test_a_missing_and_an_edited_record_are_named(graph, tmp_path):
    assert why(None, TUNED, graph) == ["missing"]
    write(tmp_path)
    file = record_file(tmp_path, "s", TUNED)
    file.write_text(file.read_text().replace('"ok"', '"void"'))
    assert why(read_record(file), TUNED, graph) == ["edited"]


def test_a_job_is_explained_in_full(graph, tmp_path):
    (line,) = explain(tmp_path, "s", TUNED, graph)
    assert line == f"finetune/m/sst2: missing; {record_file(tmp_path, 's', TUNED)} does not exist"
    write(tmp_path, config={f"key{number}": "x" for number in range(50)}, inputs={"data": "e" * 64})
    first, *reasons = explain(tmp_path, "s", TUNED, graph)
    assert first == "finetune/m/sst2: stale"
    assert len(reasons) == 3 + 50 + 1  # keys that are new, keys that are gone, an input
    assert reasons[-1] == "  input data changed"
    write(tmp_path, fingerprint=TUNED.fingerprint)
    assert explain(tmp_path, "s", TUNED, graph) == ["finetune/m/sst2: current"]


def test_only_stale_records_are_printed_each_in_one_short_line(graph, tmp_path):
    assert lines(tmp_path, "s", graph) == []  # a missing record is not stale
    write(tmp_path, DATA, fingerprint=DATA.fingerprint, inputs={})
    write(tmp_path, config={f"key{number}": "x" * 100 for number in range(50)})
    (line,) = lines(tmp_path, "s", graph)
    assert line.startswith("finetune/m/sst2: config.learning_rate: 0.001, was not there; ")
    assert len(line) <= LINE
    record_file(tmp_path, "s", TUNED).write_text("{")
    (line,) = lines(tmp_path, "s", graph)
    assert "not a record of schema 1" in line


def test_many_stale_records_are_a_bounded_number_of_lines(tmp_path):
    graph = Graph()
    for number in range(LINES + 5):
        job = Job("finetune", f"m{number}/sst2", {}, (), "f" * 64)
        graph[job.id] = job
        write(tmp_path, job, inputs={})
    found = lines(tmp_path, "s", graph)
    assert len(found) == LINES + 1
    assert found[-1] == "and 5 more"
