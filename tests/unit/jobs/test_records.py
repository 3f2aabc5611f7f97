"""The record and files that a job leaves, however it ends."""

import errno
import json
from pathlib import Path

import pytest

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.execute import execute_job
from mobilebert.jobs.freshness import current_records, edited_records, freshness_of, record_file
from mobilebert.jobs.record import read_record, sealed
from mobilebert.study.code_hash import module_hashes
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.util.errors import Diverged, UserError
from mobilebert.util.files import file_sha256, write_atomically

JOB = "data"


@pytest.fixture
def graph():
    return build_graph(load_study("smoke"))


def execute(graph, results, stage, key=JOB):
    return execute_job(graph[key], "smoke", results, graph, stage)


def give(run):
    """Write one artefact, a metric and a curve: a stage."""
    (run.folder / "thing.txt").write_text("thing")
    run.artefacts.append("thing.txt")
    run.metrics["accuracy"] = 0.5
    run.log(0, train_loss=2.0)


def test_a_record_names_metrics_artefacts_versions_and_machine(graph, tmp_path):
    record = execute(graph, tmp_path, give)
    assert (record.status, record.metrics, record.curves) == ("ok", {"accuracy": 0.5}, {"train_loss": [(0, 2.0)]})
    assert record.fingerprint == graph[JOB].fingerprint
    assert record.artefacts["thing.txt"]["sha256"] == file_sha256(tmp_path / "smoke/data/thing.txt")
    assert record.versions["python"]
    assert record.machine["cores"] >= 1
    assert freshness_of(tmp_path, "smoke", graph[JOB], graph) == "current"
    assert not list((tmp_path / "smoke/.state").glob("*/"))


def test_a_diverged_job_is_recorded_and_refuses_jobs_that_need_it(graph, tmp_path):
    def diverge(run):
        run.log(3, train_loss=float("nan"))
        raise Diverged("loss nan at step 3")

    record = execute(graph, tmp_path, diverge)
    assert (record.status, record.reason, record.curves["train_loss"]) == ("diverged", "loss nan at step 3", [(3, None)])
    after = execute(graph, tmp_path, lambda run: pytest.fail("ran on a diverged input"), "pretrain/ib-bert-large")
    assert (after.status, after.reason) == ("refused", "input data is diverged")
    assert freshness_of(tmp_path, "smoke", graph["pretrain/ib-bert-large"], graph) == "current"


def test_a_refusal_leaves_a_record_and_is_tried_again(graph, tmp_path):
    def refuse(run):
        raise UserError("corpus: empty")

    with pytest.raises(UserError, match="corpus: empty"):
        execute(graph, tmp_path, refuse)
    record = read_record(tmp_path / "smoke/data/result.json")
    assert (record.status, record.reason) == ("refused", "corpus: empty")
    assert freshness_of(tmp_path, "smoke", graph[JOB], graph) == "stale"


def test_a_job_refused_for_its_input_runs_once_the_input_is_ok(graph, tmp_path):
    teacher = "pretrain/ib-bert-large"

    def diverge(run):
        raise Diverged("loss nan")

    execute(graph, tmp_path, diverge)
    execute(graph, tmp_path, give, teacher)
    assert freshness_of(tmp_path, "smoke", graph[teacher], graph) == "current"
    (tmp_path / "smoke/data/result.json").unlink()
    assert freshness_of(tmp_path, "smoke", graph[teacher], graph) == "stale"
    execute(graph, tmp_path, give)
    assert execute(graph, tmp_path, give, teacher).status == "ok"


def test_a_refused_input_is_an_error_not_a_record(graph, tmp_path):
    def refuse(run):
        raise UserError("no GPU")

    with pytest.raises(UserError):
        execute(graph, tmp_path, refuse)
    with pytest.raises(UserError, match="refused: no GPU"):
        execute(graph, tmp_path, lambda run: run.record_of(JOB), "pretrain/ib-bert-large")


def test_the_last_good_state_of_a_diverged_run_stays(graph, tmp_path):
    def diverge(run):
        (run.state / "train.safetensors").write_text("good")
        raise Diverged("loss nan")

    execute(graph, tmp_path, diverge)
    assert list((tmp_path / "smoke/.state").glob("data-*/train.safetensors"))


def test_a_crash_leaves_no_record_and_keeps_its_state(graph, tmp_path):
    def crash(run):
        (run.state / "checkpoint").write_text("3")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        execute(graph, tmp_path, crash)
    assert freshness_of(tmp_path, "smoke", graph[JOB], graph) == "missing"
    seen = []
    execute(graph, tmp_path, lambda run: seen.append((run.state / "checkpoint").read_text()))
    assert seen == ["3"]


def test_a_void_measurement_says_so(graph, tmp_path):
    record = execute(graph, tmp_path, lambda run: "the machine was shared")
    assert (record.status, record.reason) == ("void", "the machine was shared")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda record: {**record, "fingerprint": "0" * 64}, "stale"),
        (lambda record: {**record, "stage": "pretrain"}, "stale"),
        (lambda record: {**record, "schema": 2}, "stale"),
        (lambda record: {key: value for key, value in record.items() if key != "status"}, "stale"),
        (lambda record: {**record, "a_later_key": 1}, "current"),
    ],
)
def test_only_a_jobs_own_record_is_trusted(graph, tmp_path, change, state):
    execute(graph, tmp_path, give)
    file = tmp_path / "smoke/data/result.json"
    file.write_text(json.dumps(sealed(change(json.loads(file.read_text())))))
    assert freshness_of(tmp_path, "smoke", graph[JOB], graph) == state


def test_an_input_is_checked_before_it_is_used(graph, tmp_path):
    run = JobContext(graph["pretrain/ib-bert-large"], "smoke", tmp_path, graph)
    with pytest.raises(UserError, match=r"data/result\.json: missing; make it with: python -m mobilebert data"):
        run.record_of(JOB)
    execute(graph, tmp_path, give)
    assert run.artefact_of(JOB, "thing.txt").read_text() == "thing"
    with pytest.raises(UserError, match=r"other\.txt: missing"):
        run.artefact_of(JOB, "other.txt")
    (tmp_path / "smoke/data/thing.txt").write_text("thinG")
    with pytest.raises(UserError, match=r"thing\.txt: sha256 is not"):
        run.artefact_of(JOB, "thing.txt")
    file = tmp_path / "smoke/data/result.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | {"fingerprint": "0" * 64})))
    with pytest.raises(UserError, match="written with another configuration"):
        run.record_of(JOB)


def test_two_processes_cannot_run_one_job(graph, tmp_path):
    def inner(run):
        with pytest.raises(UserError, match="another process is making this result"):
            execute(graph, tmp_path, give)

    assert execute(graph, tmp_path, inner).status == "ok"


def test_a_current_job_does_not_run_again(graph, tmp_path):
    first = execute(graph, tmp_path, give)
    assert execute(graph, tmp_path, lambda run: pytest.fail("done before")) == first
    (tmp_path / "smoke/data/thing.txt").unlink()
    assert execute(graph, tmp_path, give).started >= first.started
    assert (tmp_path / "smoke/data/thing.txt").is_file()


def test_a_void_measurement_is_made_again(graph, tmp_path):
    execute(graph, tmp_path, lambda run: "the machine was shared")
    assert execute(graph, tmp_path, give).status == "ok"


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "a", None)
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_full_disk_is_one_error_and_leaves_no_part(graph, tmp_path, monkeypatch):
    """There is no room for the stage's file, nor for the record that would say so."""

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    def stage(run):
        patch.setattr(Path, "write_bytes", full)
        raise UserError("train.safetensors: the state after step 8 cannot be written")

    write_atomically(tmp_path / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write_atomically(tmp_path / "a", b"new")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="the state after step 8"):
        execute(graph, tmp_path, stage)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]
    assert execute(graph, tmp_path, give).status == "ok"


def test_labels_pass_from_teacher_to_student(graph, tmp_path):
    execute(graph, tmp_path, lambda run: run.label(["scaled"]))
    run = JobContext(graph["pretrain/ib-bert-large"], "smoke", tmp_path, graph)
    run.label(["short", "scaled"], JOB)
    assert run.labels == ["short", "scaled"]


def test_a_changed_metric_makes_a_record_edited_and_stale(graph, tmp_path):
    record = execute(graph, tmp_path, give)
    path = tmp_path / "smoke/data/result.json"
    assert read_record(path).seal == "sealed"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))  # other spaces and order, the same content
    assert read_record(path).seal == "sealed"
    path.write_text(json.dumps(content | {"metrics": {"accuracy": 0.999}}))
    assert read_record(path).seal == "edited"
    assert freshness_of(tmp_path, "smoke", graph[JOB], graph) == "stale"
    assert edited_records(tmp_path, "smoke", graph) == [JOB]
    assert current_records(tmp_path, "smoke", graph) == {}
    run = JobContext(graph["pretrain/ib-bert-large"], "smoke", tmp_path, graph)
    with pytest.raises(UserError, match="edited after it was written"):
        run.record_of(JOB)
    assert execute(graph, tmp_path, give).metrics == record.metrics


def test_a_record_without_a_checksum_loads_as_unsealed(graph, tmp_path):
    execute(graph, tmp_path, give)
    path = tmp_path / "smoke/data/result.json"
    content = json.loads(path.read_text())
    for key in ("checksum", "modules", "weights_dtype", "predictions", "quantization", "row", "pretraining_seed"):
        del content[key]
    path.write_text(json.dumps(content))
    assert read_record(path).seal == "unsealed"
    assert freshness_of(tmp_path, "smoke", graph[JOB], graph) == "current"


def test_a_record_names_its_row_and_pretraining_seed(tmp_path):
    study = load_study("smoke")
    changes = {"seed": 4, "seeds": {"mobilebert": 3}, "run": {"mobilebert": ("sst2",)}, "expect": ()}
    graph = build_graph(study.model_copy(update=changes))
    names = ("mobilebert-seed-2", "mobilebert-seed-2/sst2", "ib-bert-large", "bag-of-embeddings/sst2")
    for key in graph:
        if key == "data" or key.partition("/")[2] in names:
            execute(graph, tmp_path, lambda run: None, key)
    found = {
        key: (record.row, record.pretraining_seed)
        for key in graph
        if (path := record_file(tmp_path, "smoke", graph[key])).is_file() and (record := read_record(path))
    }
    assert found == {
        "data": (None, None),
        "pretrain/ib-bert-large": ("ib-bert-large", 4),
        "transfer/mobilebert-seed-2": ("mobilebert", 6),
        "attention/mobilebert-seed-2": ("mobilebert", 6),
        "distill/mobilebert-seed-2": ("mobilebert", 6),
        "finetune/mobilebert-seed-2/sst2": ("mobilebert", 6),
        "quantize/mobilebert-seed-2/sst2": ("mobilebert", 6),
        "finetune/bag-of-embeddings/sst2": ("bag-of-embeddings", None),
    }


def test_a_record_names_the_modules_that_it_depends_on(graph, tmp_path):
    record = execute(graph, tmp_path, give)
    assert record.modules == module_hashes("data")
    assert "mobilebert.data.corpus" in record.modules
    assert all(len(value) == 16 for value in record.modules.values())


def test_every_committed_record_still_loads():
    found = sorted(Path(__file__).parents[3].glob("reports/**/result.json"))
    assert found
    for path in found:
        assert read_record(path).seal in ("sealed", "unsealed"), path
