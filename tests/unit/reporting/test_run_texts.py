"""MLflow runs are worded: names, tags, descriptions, headline metrics, parameters and data sets."""

import json

import pytest
from mlflow_runs import LATENCY, PRETRAIN, graph_of, job, write_record

from mobilebert.reporting.run_inputs import data_sets
from mobilebert.reporting.run_params import flatten, shared, without_shared
from mobilebert.reporting.run_texts import child_tags, headline, model_of, parent_tags, run_name, task_of

SCORE = job("finetune", "mobilebert/mrpc", "bbbbbbbb", task="mrpc", precision="fp32")
INT8 = job("quantize", "mobilebert/mrpc", "dddddddd", task="mrpc", precision="fp32")


@pytest.mark.parametrize(
    ("key", "name", "model", "task"),
    [
        ("finetune/mobilebert/sst2", "sst2 mobilebert finetune", "mobilebert", "sst2"),
        ("distill/mobilebert-seed-1", "mobilebert-seed-1 distill", "mobilebert-seed-1", ""),
        ("data", "data", "", ""),
    ],
)
def test_a_run_is_named_by_its_task_first(key, name, model, task):
    assert (run_name(key), model_of(key), task_of(key)) == (name, model, task)


def test_headline_metrics_are_scores_heldout_losses_and_medians_of_records_that_count(tmp_path):
    metrics = {"accuracy": 0.75, "f1": 0.8, "majority": 0.5, "failed_share": 0.0}
    found = {
        SCORE.id: write_record(tmp_path, SCORE, metrics=metrics),
        PRETRAIN.id: write_record(tmp_path, PRETRAIN, metrics={"heldout_mlm_loss": 2.5, "unigram_entropy": 5.0}),
        LATENCY.id: write_record(tmp_path, LATENCY, metrics={"m/pytorch:p50_ms": 2.0, "m/pytorch:p90_ms": 3.0}),
        INT8.id: write_record(tmp_path, INT8, "diverged", metrics={"accuracy": 0.7}),
    }
    assert headline(found) == {
        "finetune/mobilebert/mrpc:accuracy": 0.75,
        "finetune/mobilebert/mrpc:f1": 0.8,
        "pretrain/teacher:heldout_mlm_loss": 2.5,
        "latency:m/pytorch:p50_ms": 2.0,
    }
    found[LATENCY.id] = write_record(tmp_path, LATENCY, "void", metrics={"m/pytorch:p50_ms": 2.0})
    assert not any(key.startswith("latency") for key in headline(found))


def test_a_parent_says_what_it_ran_from_which_commit_and_what_failed(tmp_path):
    old = write_record(tmp_path, PRETRAIN, commit="a" * 40)
    new = write_record(tmp_path, SCORE, started="2021-01-01T00:00:00+00:00", commit="b" * 40 + "-dirty")
    void = write_record(tmp_path, LATENCY, "void", reason="a busy machine")
    tags = parent_tags("study", "three jobs", {record.id: record for record in (old, new, void)})
    assert (tags["model"], tags["task"]) == ("teacher, mobilebert", "mrpc")
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("b" * 40, "true")
    lines = tags["mlflow.note.content"].split("\n")
    assert lines[:3] == ["three jobs", "", "3 records, 2 ok."]
    assert lines[4].startswith("- latency: void (a busy machine; measure again")
    assert "mlflow.source.git.commit" not in child_tags(void)


def test_a_child_describes_its_labels(tmp_path):
    note = child_tags(write_record(tmp_path, SCORE, labels=["scaled: widths / 8", "subset"]))["mlflow.note.content"]
    assert note == "- scaled: widths / 8\n- subset"


def test_parameters_with_one_value_stay_with_the_parent():
    other = job("finetune", "mobilebert/rte", "11111111", task="rte", precision="fp32", epochs=3)
    same = shared(graph_of(SCORE, INT8, other, LATENCY))
    assert same == {"precision": "fp32"}
    own, left_out = without_shared(other.config, same)
    assert own == {"task": "rte", "epochs": "3"}
    assert left_out == ["precision"]
    assert own | {key: same[key] for key in left_out} == flatten(other.config)
    assert without_shared({"precision": "bf16"}, same) == ({"precision": "bf16"}, [])


def test_data_sets_have_the_digests_of_the_files_that_a_job_read(tmp_path):
    data = job("data", "", "22222222", source="local:/some/where")
    splits = ("train", "validation", "test")
    files = {f"tasks/mrpc/{split}.parquet": {"sha256": letter * 64} for split, letter in zip(splits, "abc", strict=True)}
    files |= {f"corpus/{split}.tokens.npy": {"sha256": letter * 64} for split, letter in (("train", "d"), ("heldout", "e"))}
    details = {"rows": {"mrpc": {"train": 800, "validation": 200}}}
    found = {"data": write_record(tmp_path, data, artefacts=files, details=details, metrics={"tokens_train": 5})}
    reads = {"inputs": {"data": data.fingerprint}}
    tuned, scored, trained = (write_record(tmp_path, item, **reads) for item in (SCORE, INT8, PRETRAIN))
    train, validation = data_sets(tuned, found)
    assert (train.name, train.context, train.digest) == ("local/mrpc/train", "training", "a" * 36)
    assert json.loads(train.profile) == {"num_rows": 800}
    assert [column["name"] for column in json.loads(train.columns)["mlflow_colspec"]] == [
        "sentence1",
        "sentence2",
        "label",
        "idx",
    ]
    assert (validation.context, validation.digest, validation.place) == (
        "validation",
        "b" * 36,
        "data/tasks/mrpc/validation.parquet",
    )
    assert [item.digest[0] for item in data_sets(scored, found)] == ["b"]
    assert [item.digest[0] for item in data_sets(trained, found)] == ["d", "e"]
    assert json.loads(data_sets(trained, found)[0].profile) == {"num_tokens": 5}
    assert not data_sets(write_record(tmp_path, SCORE), found)
    assert not data_sets(tuned, {})
