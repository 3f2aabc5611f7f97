"""MLflow as a view of the records; MLflow's own client, asked about the store, is the oracle."""

import json
import shutil

import pytest
from mlflow_runs import LATENCY, PRETRAIN, STUDY, client_of, graph_of, job, runs_of, write_record

from mobilebert.jobs.freshness import record_file
from mobilebert.reporting import experiment, tracking
from mobilebert.util.errors import UserError

FINETUNE = job("finetune", "student/sst2", "bbbbbbbb", epochs=3)
REASONS = {"void": "the reason; measure again: snakemake --forcerun latency"}


def test_one_store_of_several_studies(results, monkeypatch):
    """MLflow's variable names the store: one experiment a study, to compare in one window."""
    from mlflow import MlflowClient

    shutil.move(results / "study" / "mlflow.db", results / "all.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{results / 'all.db'}")
    graph, found = graph_of(PRETRAIN), {PRETRAIN.id: write_record(results, PRETRAIN, metrics={"loss": 2.5})}
    another = STUDY.model_copy()
    object.__setattr__(another, "_name", "another")
    for study in (STUDY, another, STUDY):
        tracking.ingest(results, study, graph, found)
    client = MlflowClient(f"sqlite:///{results / 'all.db'}")
    for name in ("study", "another"):
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        assert sorted(run.data.metrics.get("loss", 0) for run in runs) == [0, 2.5]  # the parent, and one record once
    assert not (results / "study" / "mlflow.db").exists()
    assert not (results.parent / "mlruns").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://host")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: .*nowhere"):
        tracking.ingest(results, STUDY, graph, found)


def test_ingesting_twice_adds_nothing(results):
    graph = graph_of(PRETRAIN, FINETUNE, LATENCY)
    found = {
        PRETRAIN.id: write_record(results, PRETRAIN, curves={"loss": [[1, 3.5], [2, None], [3, 2.5]]}),
        FINETUNE.id: write_record(
            results,
            FINETUNE,
            metrics={"accuracy": 0.75, "f1": None},
            samples={"accuracy": [0.7, 0.8]},
            labels=["scaled"],
        ),
    }
    assert tracking.ingest(results, STUDY, graph, found) == {"added": 2, "completed": 0, "there": 0}
    assert tracking.ingest(results, STUDY, graph, found) == {"added": 0, "completed": 0, "there": 2}

    parents, children = runs_of(results)
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert parents[0].data.params["finetune.learning_rate"] == "5e-05"
    assert {key: len(runs) for key, runs in children.items()} == {PRETRAIN.id: 1, FINETUNE.id: 1}
    tuned, trained = children[FINETUNE.id][0], children[PRETRAIN.id][0]
    assert tuned.data.metrics == {"accuracy": 0.75, "samples/accuracy": 0.8}
    assert {tuned.data.tags[key] for key in ("status", "labels", "stage", "study", "fingerprint")} == {
        "ok", "scaled", "finetune", "study", FINETUNE.fingerprint,
    }  # fmt: skip
    assert "reused" not in tuned.data.tags
    assert trained.data.params == {"steps": "10", "architecture.hidden_size": "64", "seeds": "[0,1]"}
    assert trained.info.end_time - trained.info.start_time == 2500
    client = client_of(results)
    history = client.get_metric_history(trained.info.run_id, "curves/loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.5), (3, 2.5)]
    assert [item.path for item in client.list_artifacts(tuned.info.run_id)] == ["result.json"]
    assert list((results / "study" / "mlartifacts").rglob("result.json"))


def lines_of_runs(**changes):
    line = {
        "run": "seed0", "role": "seed", "setting": {"learning_rate": 1e-4, "epochs": 3}, "seed": 0, "part": 1, "status": "ok",
        "reason": None, "metrics": {"accuracy": 0.75}, "started": "2020-01-01T00:00:00+00:00", "seconds": 1.5,
    }  # fmt: skip
    return json.dumps(line) + "\n" + json.dumps(line | changes) + "\n"


def below(results, run):
    client = client_of(results)
    return {
        item.data.tags["run"]: item
        for item in client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    }


def test_trials_of_a_job_are_nested_below_its_mlflow_run_once(results, monkeypatch):
    """The first attempt is killed between two trials."""
    record = write_record(results, FINETUNE, metrics={"accuracy": 0.75})
    diverged = {"run": "seed1", "seed": 1, "status": "diverged", "reason": "loss nan", "metrics": {}}
    (record_file(results, "study", FINETUNE).parent / "runs.jsonl").write_text(lines_of_runs(**diverged))
    graph, found, log, calls = graph_of(FINETUNE), {FINETUNE.id: record}, experiment.Experiment._log, []

    def killed_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # calls for the parent, the first line, the second line
            raise KeyboardInterrupt
        return log(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(experiment.Experiment, "_log", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            tracking.ingest(results, STUDY, graph, found)
    assert tracking.ingest(results, STUDY, graph, found) == {"added": 0, "completed": 1, "there": 0}
    assert tracking.ingest(results, STUDY, graph, found) == {"added": 0, "completed": 0, "there": 1}
    parents, children = runs_of(results)
    (run,) = children[FINETUNE.id]
    assert len(parents) == 1
    nested = below(results, run)
    assert set(nested) == {"seed0", "seed1"}
    assert len(children["seed0"]) == len(children["seed1"]) == 1
    assert nested["seed0"].data.metrics == {"accuracy": 0.75}
    assert nested["seed0"].data.params == {"learning_rate": "0.0001", "epochs": "3", "seed": "0", "part": "1"}
    assert nested["seed0"].info.end_time - nested["seed0"].info.start_time == 1500
    assert (nested["seed1"].info.status, nested["seed1"].data.tags["reason"]) == ("FAILED", "loss nan")


def test_nothing_is_written_outside_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracking.ingest(tmp_path / "results", STUDY, graph_of(LATENCY), {})  # creates its database
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert [run.data.tags["study"] for run in runs_of(tmp_path / "results")[0]] == ["study"]


def test_small_artefacts_are_stored_and_large_ones_are_not(results):
    folder = record_file(results, "study", FINETUNE).parent
    folder.mkdir(parents=True)
    (folder / "predictions.json").write_text("[]")
    (folder / "model.safetensors").write_bytes(b"0")
    artefacts = {"predictions.json": {"bytes": 2}, "model.safetensors": {"bytes": experiment.SMALL_ARTEFACT + 1}}
    record = write_record(results, FINETUNE, artefacts=artefacts)
    tracking.ingest(results, STUDY, graph_of(FINETUNE), {FINETUNE.id: record})
    run = runs_of(results)[1][FINETUNE.id][0]
    assert {item.path for item in client_of(results).list_artifacts(run.info.run_id)} == {
        "predictions.json",
        "result.json",
    }


@pytest.mark.parametrize(
    ("status", "expected"), [("diverged", "FAILED"), ("refused", "FAILED"), ("void", "FAILED"), ("ok", "FINISHED")]
)
def test_the_status_of_a_record_sets_that_of_its_mlflow_run(results, status, expected):
    record = write_record(results, LATENCY, status, reason="the reason")
    found = {} if status == "refused" else {LATENCY.id: record}  # a refused record counts as stale, not as current
    tracking.ingest(results, STUDY, graph_of(LATENCY), found)
    run = runs_of(results)[1][LATENCY.id][0]
    assert (run.info.status, run.data.tags["status"], run.data.tags["reason"]) == (
        expected,
        status,
        REASONS.get(status, "the reason"),
    )


MOBILE = job("finetune", "mobilebert/sst2", "dddddddd")
WNLI = job("finetune", "mobilebert/wnli", "eeeeeeee")
BASELINE = job("finetune", "bag-of-embeddings/sst2", "ffffffff")


@pytest.mark.parametrize(
    ("failed", "parent"),
    [((MOBILE,), "FAILED"), ((WNLI,), "FINISHED"), ((BASELINE,), "FINISHED"), ((MOBILE, WNLI, BASELINE), "FAILED")],
)
def test_an_unlearnt_score_is_a_failed_mlflow_run_and_a_headline_fails_the_study(results, failed, parent):
    found = {}
    for item in (MOBILE, WNLI, BASELINE):
        details = {"statuses": ["failed" if item in failed else "ok"]}
        found[item.id] = write_record(results, item, metrics={"accuracy": 0.5}, details=details)
    tracking.ingest(results, STUDY, graph_of(MOBILE, WNLI, BASELINE), found, lambda: {"measured_failed": len(failed)})
    parents, children = runs_of(results)
    assert [run.info.status for run in parents] == [parent]
    scores = {f"{item.id}:accuracy": 0.5 for item in (MOBILE, WNLI, BASELINE)}
    assert parents[0].data.metrics == {"cells/measured_failed": len(failed)} | scores
    for item in (MOBILE, WNLI, BASELINE):
        (run,) = children[item.id]
        wanted = ("FAILED", "failed", "1 of 1 runs failed") if item in failed else ("FINISHED", "ok", None)
        assert (run.info.status, run.data.tags["status"], run.data.tags.get("reason")) == wanted


def test_only_headline_failures_decide_unless_nothing_was_learnt(results):
    other = {BASELINE.id: write_record(results, BASELINE, details={"statuses": ["failed"]})}
    assert tracking.has_failed(other)
    assert not tracking.has_failed(other | {MOBILE.id: write_record(results, MOBILE)})
    assert not tracking.has_failed({PRETRAIN.id: write_record(results, PRETRAIN)})


def test_a_failed_score_that_a_store_calls_finished_is_corrected(results):
    graph, record = graph_of(MOBILE), write_record(results, MOBILE, details={"statuses": ["failed"]})
    tracking.ingest(results, STUDY, graph, {MOBILE.id: record})
    client, (run,) = client_of(results), runs_of(results)[1][MOBILE.id]
    client.set_tag(run.info.run_id, "status", "ok")
    client.set_terminated(run.info.run_id, "FINISHED")
    assert tracking.ingest(results, STUDY, graph, {MOBILE.id: record})["completed"] == 1
    (run,) = runs_of(results)[1][MOBILE.id]
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "failed")


def test_a_record_edited_by_hand_is_named_and_left_out(results):
    said = []
    counts = tracking.ingest(results, STUDY, graph_of(PRETRAIN), {}, edited=[PRETRAIN.id], say=said.append)
    assert counts == {"added": 0, "completed": 0, "there": 0}
    assert said == [f"{PRETRAIN.id}: edited after it was written; left out of MLflow"]


def test_an_edit_of_one_key_logs_the_one_job_that_it_changed(results):
    """The run of the other record serves both parents; both have its headline metric."""
    found = {
        PRETRAIN.id: write_record(results, PRETRAIN, metrics={"heldout_mlm_loss": 2.5}),
        FINETUNE.id: write_record(results, FINETUNE, metrics={"accuracy": 0.75}),
    }
    tracking.ingest(results, STUDY, graph_of(PRETRAIN, FINETUNE), found)
    other = job("finetune", "student/sst2", "dddddddd", epochs=4)
    found[other.id] = write_record(results, other, metrics={"accuracy": 0.8})
    graph = graph_of(PRETRAIN, other)
    assert tracking.ingest(results, STUDY, graph, found) == {"added": 1, "completed": 0, "there": 1}
    assert tracking.ingest(results, STUDY, graph, found) == {"added": 0, "completed": 0, "there": 2}
    parents, children = runs_of(results)
    loss = "pretrain/teacher:heldout_mlm_loss"
    assert sorted((run.data.metrics[f"{FINETUNE.id}:accuracy"], run.data.metrics[loss]) for run in parents) == [
        (0.75, 2.5), (0.8, 2.5),
    ]  # fmt: skip
    assert {run.info.status for run in parents} == {"FINISHED"}
    (trained,) = children[PRETRAIN.id]
    assert {trained.data.tags["mlflow.parentRunId"], trained.data.tags["used_by"]} == {run.info.run_id for run in parents}
    assert len(children[other.id]) == 2


def test_a_kill_while_the_parent_is_created_loses_neither_parameters_nor_study(results, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiment.Experiment, "_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tracking.ingest(results, STUDY, graph_of(LATENCY), {})
    tracking.ingest(results, STUDY, graph_of(LATENCY), {})
    ((parent,), _) = runs_of(results)
    assert (parent.info.status, parent.data.params["description"]) == ("FINISHED", STUDY.description)
    assert [item.path for item in client_of(results).list_artifacts(parent.info.run_id)] == ["study.json"]


def test_a_kill_before_the_parent_ends_loses_nothing(results, monkeypatch):
    """The first process dies after the last child run, the second between a run and its files."""
    graph, record = graph_of(LATENCY), write_record(results, LATENCY, metrics={"mobilebert/pytorch:p50_ms": 1.0})
    tracking.ingest(results, STUDY, graph, {})
    for name in ("close", "_keep"):
        with monkeypatch.context() as patch:
            patch.setattr(experiment.Experiment, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tracking.ingest(results, STUDY, graph, {LATENCY.id: record})
        assert [run.info.status for run in runs_of(results)[0]] == ["RUNNING"]
        again = tracking.ingest(results, STUDY, graph, {LATENCY.id: record})
        assert again == {"added": 0, "completed": int(name == "_keep"), "there": int(name == "close")}
        (parent,), children = runs_of(results)
        value = record.metrics["mobilebert/pytorch:p50_ms"]
        assert (parent.info.status, parent.data.metrics["latency:mobilebert/pytorch:p50_ms"]) == ("FINISHED", value)
        last = next(run for run in children[LATENCY.id] if run.data.metrics["mobilebert/pytorch:p50_ms"] == value)
        assert [item.path for item in client_of(results).list_artifacts(last.info.run_id)] == ["result.json"]
        record = write_record(results, LATENCY, metrics={"mobilebert/pytorch:p50_ms": 2.0})


def test_deleting_the_database_and_tracking_again_gives_the_same_runs(results, empty_database):
    data = job("data", "", "11111111", source="synthetic")
    graph = graph_of(data, PRETRAIN, FINETUNE, LATENCY)
    found = {
        data.id: write_record(results, data, artefacts={"tasks/sst2/train.parquet": {"sha256": "ab" * 32, "bytes": 3}}),
        PRETRAIN.id: write_record(results, PRETRAIN, curves={"loss": [[1, 3.5], [2, 2.5]]}, commit="c" * 40 + "-dirty"),
        FINETUNE.id: write_record(
            results, job("finetune", "student/sst2", "bbbbbbbb", task="sst2"), metrics={"accuracy": 0.75},
            inputs={"data": data.fingerprint},
        ),
        LATENCY.id: write_record(results, LATENCY, "void", reason="another process"),
    }  # fmt: skip

    def all_runs():
        tracking.ingest(results, STUDY, graph, found)
        parents, children = runs_of(results)
        runs = [
            (run.data.tags.get("job", "parent"), run) for run in (*parents, *(one for each in children.values() for one in each))
        ]
        contents = {}
        for name, run in runs:
            tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
            sets = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
            contents[name] = (run.info.status, run.info.run_name, run.data.metrics, run.data.params, tags, sets)
        assert len(contents) == len(runs) == 5
        return contents

    first = all_runs()
    assert first[FINETUNE.id][-1] == first["parent"][-1] == [("synthetic/sst2/train", ("ab" * 32)[:36])]
    assert first["parent"][4]["mlflow.source.git.commit"] == "c" * 40
    (results / "study" / "mlflow.db").unlink()
    shutil.rmtree(results / "study" / "mlartifacts")
    shutil.copy(empty_database, results / "study" / "mlflow.db")
    assert all_runs() == first


def test_a_repeated_measurement_is_a_second_mlflow_run(results):
    graph = graph_of(LATENCY)
    tracking.ingest(results, STUDY, graph, {LATENCY.id: write_record(results, LATENCY, metrics={"p50_ms": 1.0})})
    tracking.ingest(results, STUDY, graph, {LATENCY.id: write_record(results, LATENCY, metrics={"p50_ms": 2.0})})
    runs = runs_of(results)[1][LATENCY.id]
    assert sorted(run.data.metrics["p50_ms"] for run in runs) == [1.0, 2.0]
