"""Fine-tuned checkpoints in MLflow's registry; tests/long/tracking.py loads one and predicts."""

import fcntl
import hashlib

import pytest
from mlflow_runs import STUDY, client_of, graph_of, job, runs_of, write_record

from mobilebert.publishing import registry
from mobilebert.publishing.checkpoint import checkpoints
from mobilebert.publishing.registry import register, signature
from mobilebert.reporting import tracking
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

LEARNT = job("finetune", "mobilebert/sst2", "aaaaaaaa", task="sst2")
FAILED = job("finetune", "mobilebert/rte", "bbbbbbbb", task="rte")


def write_checkpoint(results, item, **fields):
    folder = results / "study" / item.id / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    artefacts = {"model/model.safetensors": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}}
    return write_record(results, item, artefacts=artefacts, **fields)


def test_a_model_that_has_learnt_is_registered_once_and_the_newest_has_the_alias(results):
    failed = {"details": {"statuses": ["failed"]}}
    found = {LEARNT.id: write_checkpoint(results, LEARNT), FAILED.id: write_checkpoint(results, FAILED, **failed)}
    folder, said = results / "study", []
    with pytest.raises(UserError, match="MLflow has no run of finetune/mobilebert/sst2"):
        register(folder, "study", checkpoints(results, found), said.append)
    for wanted in ({"registered": 1, "there": 0}, {"registered": 0, "there": 1}):
        tracking.ingest(results, STUDY, graph_of(LEARNT, FAILED), found)
        assert register(folder, "study", checkpoints(results, found), said.append) == wanted
    assert "finetune/mobilebert/rte: failed; not registered" in said
    client, name = client_of(results), "study-mobilebert-sst2"
    assert [model.name for model in client.search_registered_models()] == [name]
    version = client.get_model_version_by_alias(name, "current")
    run = client.get_run(version.run_id)
    assert run.data.tags["job"] == LEARNT.id
    (model,) = run.outputs.model_outputs
    assert model.model_id in version.source
    files = [path for path in (folder / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "served_model.py" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle")]
    assert [path.read_bytes() for path in files if path.name == "model.safetensors" and "models" in path.parts] == [b"weights"]
    found[LEARNT.id] = write_checkpoint(results, LEARNT, started="2021-01-01T00:00:00+00:00")
    tracking.ingest(results, STUDY, graph_of(LEARNT, FAILED), found)
    assert register(folder, "study", checkpoints(results, found), said.append)["registered"] == 1
    assert str(client.get_model_version_by_alias(name, "current").version) == "2"
    assert len(runs_of(results)[1][LEARNT.id]) == 2


def test_two_programs_at_once_register_a_record_once(results, monkeypatch):
    """The second program of this machine waits for the store's lock.

    One of another machine does not: it registers the record between this program's search and its
    own version.
    """
    found, folder = {LEARNT.id: write_checkpoint(results, LEARNT)}, results / "study"
    tracking.ingest(results, STUDY, graph_of(LEARNT), found)
    client, name, log_model = client_of(results), "study-mobilebert-sst2", registry._logged

    def logged(store, checkpoint, content):
        with (folder / ".mlflow.lock").open("a") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        model, run_id = log_model(store, checkpoint, content)
        client.create_model_version(name, model.artifact_location, run_id, tags={"record": content})
        return model, run_id

    monkeypatch.setattr(registry, "_logged", logged)
    assert register(folder, "study", checkpoints(results, found), lambda line: None) == {"registered": 0, "there": 1}
    assert [int(item.version) for item in client.search_model_versions(f"name = '{name}'")] == [1]
    assert int(client.get_model_version_by_alias(name, "current").version) == 1


def test_the_store_is_opened_under_its_lock(results, monkeypatch):
    """Two programs that create a database at the same time break it."""

    def opened(folder, study, say):
        with (folder / ".mlflow.lock").open("a") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise UserError("opened")

    monkeypatch.setattr(registry, "open_store", opened)
    with pytest.raises(UserError, match=r"^opened$"):
        register(results / "study", "study", [], lambda line: None)


@pytest.mark.parametrize(
    ("task", "given", "found"),
    [
        (
            "rte",
            ["sentence1", "sentence2", "idx"],
            ["idx", "prediction", "label", "probability_entailment", "probability_not_entailment"],
        ),
        ("stsb", ["sentence1", "sentence2", "idx"], ["idx", "prediction"]),
        ("squad_v1.1", ["question", "context", "id"], ["id", "prediction"]),
        ("squad_v2.0", ["question", "context", "id"], ["id", "answer", "prediction", "null_odds"]),
    ],
)
def test_the_signature_has_the_columns_of_the_task(task, given, found):
    columns = signature(TASKS[task])
    assert columns.inputs.input_names() == given
    assert columns.inputs.required_input_names() == given[:-1]
    assert columns.outputs.input_names() == found
