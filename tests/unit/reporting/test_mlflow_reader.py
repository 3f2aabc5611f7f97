"""The MLflow store gives back the files that it was made from."""

from types import SimpleNamespace

import pytest
from mlflow_runs import LATENCY, PRETRAIN, STUDY, client_of, graph_of, job, runs_of, write_record

from mobilebert.cli.main import main
from mobilebert.reporting import mlflow_reader, tracking
from mobilebert.reporting.run_params import flatten
from mobilebert.study.load import load_study

SCORE = job("finetune", "mobilebert/sst2", "bbbbbbbb", task="sst2", seeds=[0, 1], steps=10)
EDITED = job("finetune", "mobilebert/sst2", "dddddddd", task="sst2", seeds=[0, 1], steps=20)


@pytest.fixture
def tracked(results, monkeypatch):
    """Return the current records and their parent; an earlier one has logged two of them."""
    found = {item.id: write_record(results, item, metrics={"heldout_mlm_loss": 2.5}) for item in (PRETRAIN, SCORE, LATENCY)}
    tracking.ingest(results, STUDY, graph_of(PRETRAIN, SCORE, LATENCY), found)
    (results / "study" / EDITED.id / "predictions.parquet").write_bytes(b"bytes")
    details = {"artefacts": {"predictions.parquet": {"bytes": 1 << 30}}, "predictions": ["predictions.parquet"]}
    found[EDITED.id] = write_record(results, EDITED, metrics={"accuracy": 0.75}, **details)
    graph = graph_of(PRETRAIN, EDITED, LATENCY)
    tracking.ingest(results, STUDY, graph, found)
    found[LATENCY.id] = write_record(results, LATENCY, metrics={"m:p50_ms": 2.0}, started="2021-01-01T00:00:00+00:00")
    tracking.ingest(results, STUDY, graph, found)  # measured again
    parent = next(run for run in runs_of(results)[0] if f"{EDITED.id}:accuracy" in run.data.metrics)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{results}/study/mlflow.db")
    return found, parent.info.run_id


def test_records_of_a_run_are_those_of_its_configuration_the_newest_of_each_job(tracked):
    found, parent = tracked
    assert {record.id: record for record in mlflow_reader.read_records(parent)} == found


def test_a_store_without_files_gives_back_what_it_logged(tracked, monkeypatch):
    found, parent = tracked
    monkeypatch.setattr(mlflow_reader, "_download", lambda *_: None)
    for record in mlflow_reader.read_records(parent):
        assert record.metrics == found[record.id].metrics
        assert flatten(record.config) == flatten(found[record.id].config)
    with pytest.raises(mlflow_reader.UserError, match="keeps no files of this run"):
        mlflow_reader.download(parent, monkeypatch)


def test_a_run_is_copied_into_files_as_they_were(tracked, results, tmp_path):
    _, parent = tracked
    copy, own = tmp_path / "copy", results / "study"
    copy.mkdir()
    study = load_study(mlflow_reader.download(parent, copy))
    assert study.name == "study"
    assert study.model_dump() == STUDY.model_dump()
    wanted = [own / key / "result.json" for key in (PRETRAIN.id, EDITED.id, LATENCY.id)]
    for path in (*wanted, own / EDITED.id / "predictions.parquet"):
        assert (copy / path.relative_to(own)).read_bytes() == path.read_bytes()
    assert len([*copy.rglob("result.json")]) == len(wanted)


def test_a_run_that_cannot_be_reported_is_one_line(tracked, results, capsys):
    child = runs_of(results)[1][LATENCY.id][0].info.run_id
    for run, problem in ((child, "the run of one record"), ("nope", "Run with id=nope not found")):
        assert main(["report", "--from-mlflow", f"runs:/{run}", "--out", str(results / "page")]) == 2
        assert problem in capsys.readouterr().err
        assert not (results / "page").exists()


def test_a_store_cannot_write_outside_the_folder(tracked, results, tmp_path):
    _, parent = tracked
    child, client = runs_of(results)[1][PRETRAIN.id][0].info.run_id, client_of(results)
    folder = tmp_path / "deep" / "copy"
    folder.mkdir(parents=True)
    for run, tag, value in (
        (child, "job", "finetune/../../../out"),
        (child, "job", "nowhere/x"),
        (parent, "study", "../out"),
    ):
        before = client.get_run(run).data.tags[tag]
        client.set_tag(run, tag, value)
        with pytest.raises(mlflow_reader.UserError, match=r"is no (job's id|study's name)"):
            mlflow_reader.download(parent, folder)
        client.set_tag(run, tag, before)
    assert {path.name for path in tmp_path.iterdir()} == {"results", "deep"}
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]


def test_a_database_that_is_missing_is_not_created(tmp_path, monkeypatch, capsys):
    for uri in (f"sqlite:///{tmp_path}/typo.db", f"sqlite+pysqlite:///file:{tmp_path}/typo%3F.db?uri=true"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["report", "--from-mlflow", "runs:/any", "--out", str(tmp_path / "page")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(".db: no such database")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tags", "params"),
    [
        ({}, {"seeds": "[0,"}),
        ({"status": "odd"}, {}),
        ({"status": None}, {}),
        ({"shared_params": "steps"}, {}),
        ({"study": None}, {}),
    ],
)
def test_a_run_that_the_package_did_not_write_is_one_line(tags, params):
    known = {"job": SCORE.id, "status": "ok", "fingerprint": "0" * 64, "study": "study"} | tags
    data = SimpleNamespace(tags={key: value for key, value in known.items() if value}, metrics={}, params=params)
    child = SimpleNamespace(info=SimpleNamespace(run_id="abc"), data=data)
    with pytest.raises(mlflow_reader.UserError, match=r"^runs:/abc: not a run that `mobilebert track` wrote$"):
        mlflow_reader._logged(SimpleNamespace(get_run=lambda _: child), child)
