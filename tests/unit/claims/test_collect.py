"""Claims read rows, seeds, losses, tokens, predictions, scores and timings of records."""

import json
import math

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mobilebert.claims.collect import collect, sources_in
from mobilebert.claims.scores import row_variance, score
from mobilebert.jobs.record import Record, sealed
from mobilebert.util.errors import UserError


def write(folder, key, seed=None, **fields):
    """Write a record as a stage does; config's `seed` and the field `pretraining_seed` agree."""
    stage, _, name = key.partition("/")
    content = {"schema": 1, "study": "s", "stage": stage, "name": name, "status": "ok", "fingerprint": "0" * 64, "inputs": {}}
    config = fields.pop("config", {}) | ({} if seed is None else {"seed": seed})
    path = folder / key / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sealed(content | {"config": config, "metrics": {}, **fields})))
    return path


def training(steps, **more):
    return {"steps": steps, "batch_size": 16, "length": 32, "architecture": {"width": 8}, **more}


def loss(value):
    return {"heldout_mlm_loss": value, "unigram_entropy": 7.0}


def test_a_row_has_the_loss_of_its_last_stage_and_the_tokens_of_all(tmp_path):
    write(tmp_path, "transfer/mobilebert", 0, config=training(40), metrics={})
    write(tmp_path, "distill/mobilebert", 0, config=training(60), metrics=loss(3.5))
    write(tmp_path, "distill/mobilebert-akt", 0, config=training(100, transfer={"steps": 40}), metrics=loss(3.6))
    write(tmp_path, "pretrain/scratch", 0, config=training(100), metrics=loss(4.0), details={"train_steps": 50})
    write(tmp_path, "pretrain/ib-bert-large", 3, config=training(9), metrics=loss(2.0))
    measured = collect(sources_in(tmp_path))
    assert {row: run[0].loss for row, run in measured.losses.items()} == {
        "mobilebert": 3.5,
        "mobilebert-akt": 3.6,
        "scratch": 4.0,
    }
    tokens = {row: run[0].tokens / (16 * 32) for row, run in measured.losses.items()}
    assert tokens == {"mobilebert": 100, "mobilebert-akt": 100, "scratch": 50}
    assert measured.losses["scratch"][0].layout == '{"width":8}'
    assert measured.teachers["ib-bert-large"][3].loss == 2.0
    assert measured.losses["scratch"][0].unigram == 7.0


def test_rows_with_other_seeds_are_the_same_row(tmp_path):
    write(tmp_path, "distill/mobilebert", 0, metrics=loss(3.5))
    write(tmp_path, "distill/mobilebert-seed-1", 1, metrics=loss(3.6))  # a record without a row
    write(tmp_path, "distill/any-name", row="mobilebert", pretraining_seed=2, metrics=loss(3.7))  # the record's own fields
    write(tmp_path, "distill/mobilebert-seed-3", row="mobilebert-seed-3", pretraining_seed=3, metrics=loss(3.9))
    write(tmp_path, "distill/mobilebert-jkt", 0, metrics=loss(3.8))
    losses = collect(sources_in(tmp_path)).losses
    assert {seed: run.loss for seed, run in losses["mobilebert"].items()} == {0: 3.5, 1: 3.6, 2: 3.7, 3: 3.9}
    assert list(losses["mobilebert-jkt"]) == [0]


@pytest.mark.parametrize("fields", [{"status": "diverged"}, {"metrics": {"heldout_mlm_loss": None}}, {"metrics": {}}])
def test_a_run_without_a_loss_has_not_learnt(tmp_path, fields):
    write(tmp_path, "pretrain/scratch", 0, **{"metrics": loss(4.0)} | fields)
    run = collect(sources_in(tmp_path)).losses["scratch"][0]
    assert run.loss is None
    assert not run.has_learnt


def predictions(folder, key, correct, **fields):
    """Write a score with predictions in an order of their own, and some of another split."""
    order = np.random.default_rng(0).permutation(len(correct))
    rows = {
        "split": ["validation_mismatched", *["validation"] * len(correct)],
        "idx": [0, *order],
        "prediction": [1, *np.asarray(correct)[order].astype(int)],
        "label": [0, *np.ones(len(correct), int)],
    }
    path = write(folder, key, **{"metrics": {"accuracy": 0.5}} | fields)
    parquet.write_table(pyarrow.table(rows), path.with_name("predictions.parquet"))
    return path


def test_answers_are_those_to_the_validation_rows_in_their_order(tmp_path):
    write(tmp_path, "distill/mobilebert", 5, metrics=loss(3.5))
    inputs = {"distill/mobilebert": "0" * 64}
    predictions(tmp_path, "finetune/mobilebert/sst2", [1, 1, 0, 1], inputs=inputs)
    predictions(tmp_path, "quantize/mobilebert/sst2", [1, 0, 0, 1], inputs={"finetune/mobilebert/sst2": "0" * 64})
    predictions(tmp_path, "finetune/mobilebert/cola", [1, 0])  # no claim reads it
    answers = collect(sources_in(tmp_path)).answers
    assert list(answers) == ["sst2"]
    assert answers["sst2"]["mobilebert"][5].correct.tolist() == [True, True, False, True]
    assert answers["sst2"]["mobilebert:int8"][5].correct.tolist() == [True, False, False, True]
    assert answers["sst2"]["mobilebert"][5].is_whole


def test_answers_know_of_parts_of_tasks_failed_models_and_missing_files(tmp_path):
    path = predictions(
        tmp_path, "finetune/mobilebert/sst2", [1, 1], config={"eval_rows": 2}, details={"statuses": ["failed", "failed"]}
    )
    found = collect(sources_in(tmp_path)).answers["sst2"]["mobilebert"][0]
    assert (found.is_whole, found.failed) == (False, True)
    path.with_name("predictions.parquet").unlink()
    assert collect(sources_in(tmp_path)).answers["sst2"]["mobilebert"][0].correct is None
    path.with_name("predictions.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"predictions\.parquet: no file of predictions"):
        collect(sources_in(tmp_path))


def test_predictions_without_an_idx_are_refused(tmp_path):
    path = predictions(tmp_path, "finetune/mobilebert/sst2", [1, 1])
    rows = {"split": ["validation"] * 2, "idx": [None, 1], "prediction": [1, 1], "label": [1, 1]}
    parquet.write_table(pyarrow.table(rows), path.with_name("predictions.parquet"))
    with pytest.raises(UserError, match="idx must be an integer"):
        collect(sources_in(tmp_path))


def test_a_timing_is_the_first_engines_and_names_its_processor(tmp_path):
    metrics = {"mobilebert/a:p50_ms": 2.0, "bert-base/a:p50_ms": 9.0, "mobilebert/b:p50_ms": 1.0, "mobilebert/a:p90_ms": 3.0}
    write(tmp_path, "latency", config={"engines": ["a", "b"]}, metrics=metrics, machine={"cpu": "EPYC", "arch": "x86_64"})
    write(tmp_path / "again", "latency", config={"engines": ["a"]}, status="void", reason="busy", metrics=metrics)
    first, second = sorted(collect(sources_in(tmp_path)).timings, key=lambda timing: timing.void is not None)
    assert first.milliseconds == {"mobilebert": 2.0, "bert-base": 9.0}
    assert (first.device, first.void, second.void) == ("EPYC", None, "busy")


def test_scaled_rows_are_known_and_named_changes_are_none(tmp_path):
    write(tmp_path, "distill/mobilebert", labels=["scaled: widths / 8"])
    write(tmp_path, "distill/mobilebert-pd", labels=["corpus: another", "search: none"])
    assert collect(sources_in(tmp_path)).scaled == {"mobilebert"}


def test_sizes_are_computed_from_the_papers_widths(tmp_path):
    write(tmp_path, "data")
    sizes = collect(sources_in(tmp_path)).sizes
    assert sizes["mobilebert-table1", "parameters"] == pytest.approx(25.36, abs=0.005)
    assert sizes["mobilebert", "parameters"] == pytest.approx(24.58, abs=0.005)


def test_folders_without_records_and_damaged_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        sources_in(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no record"):
        sources_in(tmp_path)
    write(tmp_path, "report")
    with pytest.raises(UserError, match="holds no record"):
        sources_in(tmp_path)
    path = write(tmp_path, "data")
    path.write_text(path.read_text().replace('"s"', '"t"'))
    with pytest.raises(UserError, match="edited after it was written"):
        sources_in(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="not a record"):
        sources_in(tmp_path)


def test_copies_that_mlflow_and_an_import_keep_do_not_count(tmp_path):
    path = write(tmp_path, "latency", config={"engines": ["a"]}, metrics={"mobilebert/a:p50_ms": 2.0})
    for place in ("mlartifacts/0123/artifacts", ".import/latency"):
        copy = tmp_path / place / "result.json"
        copy.parent.mkdir(parents=True)
        copy.write_text(path.read_text())
    assert len(collect(sources_in(tmp_path)).timings) == 1


def test_no_record_counts_twice_and_no_two_studies_are_mixed(tmp_path):
    for place in ("one", "two"):
        write(tmp_path / "copies" / place, "latency")
        write(tmp_path / "losses" / place, "pretrain/scratch", 0, metrics=loss(4.0))
    with pytest.raises(UserError, match="copy of another timing"):
        sources_in(tmp_path / "copies")
    with pytest.raises(UserError, match="a second record of pretrain/scratch"):
        sources_in(tmp_path / "losses")
    write(tmp_path / "mixed", "pretrain/scratch", 0, metrics=loss(4.0))
    write(tmp_path / "mixed", "distill/mobilebert", 0, metrics=loss(3.0), study="t")
    with pytest.raises(UserError, match="two studies, 't' and 's'"):
        sources_in(tmp_path / "mixed")


def test_a_layout_with_nan_is_no_error(tmp_path):
    path = write(tmp_path, "pretrain/scratch", 0, metrics=loss(4.0))
    content = json.loads(path.read_text())
    del content["checksum"]
    content["config"]["architecture"] = {"width": math.nan}
    path.write_text(json.dumps(content))
    assert collect(sources_in(tmp_path)).losses["scratch"][0].layout == '{"width":NaN}'


# --- scores


def scored(task, metrics, samples=None, rows=400, positive=0.7):
    details = {"rows": {"validation": rows}, "label_shares": {"validation": [1 - positive, positive]}}
    content = {"metrics": metrics, "samples": samples or {}, "details": details, "config": {}, "inputs": {}}
    return Record(schema=1, study="s", stage="finetune", name=f"mobilebert/{task}", status="ok", fingerprint="0" * 64, **content)


def test_the_variance_over_rows_is_that_of_drawn_rows():
    """Draw many development sets of a known model: the formulas must give their spread or more."""
    generator, draws, rows = np.random.default_rng(1), 4000, 400
    labels = generator.random((draws, rows)) < 0.7
    called = np.where(labels, generator.random(labels.shape) < 0.9, generator.random(labels.shape) < 0.3)
    both = (labels & called).sum(1)
    f1 = 2 * both / (labels.sum(1) + called.sum(1))
    accuracy = (labels == called).mean(1)
    for name, values in (("f1", f1), ("accuracy", accuracy)):
        expected = row_variance(name, scored("mrpc", {name: float(values.mean())}, rows=rows))
        assert values.var() <= expected <= 1.5 * values.var(), name
    x = generator.normal(size=(draws, rows))
    y = 0.8 * x + 0.6 * generator.normal(size=x.shape)
    pearson = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x[:800], y[:800])])
    assert row_variance("pearson", scored("stsb", {"pearson": 0.8}, rows=rows)) == pytest.approx(pearson.var(), rel=0.15)


def test_a_score_has_the_seeds_of_all_records_in_points():
    records = [scored("mrpc", {"f1": 0.88}, {"f1": [0.87, None, 0.89]}), scored("mrpc", {"f1": 0.9})]
    found = score("mrpc:f1", {"mrpc": records})
    assert found is not None
    assert found.values == pytest.approx((87.0, 89.0, 90.0))
    assert found.row_variance == pytest.approx(1e4 * row_variance("f1", records[0]))
    assert score("mrpc:f1", {}) is None


@pytest.mark.parametrize(
    ("value", "rows", "positive"),
    [(0.8, 0, 0.7), (0.8, -4, 0.7), (0.8, 400, 0.0), (2.0, 400, 0.7), (1.5, 400, 0.7), (-0.5, 400, 0.7)],
)
def test_values_that_no_score_has_give_no_variance(value, rows, positive):
    assert math.isnan(row_variance("f1", scored("mrpc", {"f1": value}, rows=rows, positive=positive)))
    good = scored("mrpc", {"f1": 0.8})
    found = score("mrpc:f1", {"mrpc": [good, scored("mrpc", {"f1": value}, rows=rows, positive=positive)]})
    assert math.isnan(found.row_variance)


def test_glue_needs_all_nine_tasks():
    def value(key):
        return {key: 0.8}

    records = {
        "cola": [scored("cola", value("matthews_correlation"))],
        "stsb": [scored("stsb", {"spearmanr": 0.8, "pearson": 0.8})],
        **{task: [scored(task, {"accuracy": 0.8, "f1": 0.8})] for task in ("mrpc", "qqp")},
        **{task: [scored(task, value("accuracy"))] for task in ("sst2", "mnli", "qnli", "rte", "wnli")},
    }
    found = score("glue", records)
    assert found is not None
    assert found.values == pytest.approx((80.0,))
    assert 0 < found.row_variance < 1e4 * 0.25 / 400
    assert not math.isnan(found.row_variance)
    del records["rte"]
    assert score("glue", records) is None


@pytest.mark.parametrize(
    "key", ["finetune/../../../leak", "finetune/mobilebert/$(touch pwned);x", "finetune/mobilebert/", "nowhere"]
)
def test_a_record_that_no_job_can_have_written_is_refused(tmp_path, key):
    stage, _, name = key.partition("/")
    write(tmp_path, "finetune/any", stage=stage, name=name)
    with pytest.raises(UserError, match=r"result\.json: '.+' is no job's id"):
        sources_in(tmp_path)


def test_every_name_of_a_job_is_allowed(tmp_path):
    keys = ["data", "finetune/mobilebert/squad_v1.1", "latency", "pretrain/My_own.model-2", "pretrain/scratch-seed-1"]
    for key in keys:
        write(tmp_path, key)
    assert [source.record.id for source in sources_in(tmp_path)] == keys
