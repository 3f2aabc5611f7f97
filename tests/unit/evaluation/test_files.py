"""Scores of prediction files against scikit-learn, SciPy and the published score."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scored_tables import ROWS, table_of, write_tables
from sklearn import metrics as sk

from mobilebert.cli.main import main
from mobilebert.evaluation import prediction_files
from mobilebert.evaluation.squad import score_v2
from mobilebert.study.tasks import TASKS

DRAW = np.random.default_rng(3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("data"))


def score(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def guesses(name, frame):
    """Return predictions of which three in four are right, in another order than the table's."""
    task = TASKS[name]
    wrong = DRAW.random(len(frame)) < 0.25
    if task.is_regression:
        values = frame["label"] + DRAW.normal(size=len(frame))
    else:
        values = np.where(wrong, (frame["label"] + 1) % task.num_labels, frame["label"])
    return pd.DataFrame({"idx": frame["idx"], "prediction": values}).sample(frac=1, random_state=1)


def oracle(name, predictions, labels):
    names = {
        "accuracy": lambda: sk.accuracy_score(labels, predictions),
        "f1": lambda: sk.f1_score(labels, predictions),
        "matthews_correlation": lambda: sk.matthews_corrcoef(labels, predictions),
        "pearson": lambda: stats.pearsonr(predictions, labels)[0],
        "spearmanr": lambda: stats.spearmanr(predictions, labels)[0],
    }
    return {metric: 100 * names[metric]() for metric in TASKS[name].metrics}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if "validation" in task.splits and not task.is_squad])
@pytest.mark.parametrize("form", ["tsv", "server", "names", "parquet"])
def test_glue_files_score_as_scikit_learn_does(name, form, data, tmp_path, capsys):
    task, table = TASKS[name], table_of(data, name)
    found = guesses(name, table)
    joined = found.merge(table[["idx", "label"]], on="idx")
    expected = oracle(name, joined["prediction"], joined["label"])
    path = tmp_path / ("p.parquet" if form == "parquet" else "p.tsv")
    if form == "parquet":
        found.to_parquet(path)
    elif form == "server":
        path.write_text(prediction_files.server_tsv(task, found["idx"], found["prediction"]))
    else:
        if form == "names" and task.labels:
            found = found.assign(prediction=[task.labels[code] for code in found["prediction"]])
        found.to_csv(path, sep="\t", index=False)
    result = score(capsys, "--task", name, "--data", data, "--predictions", path)
    assert (result.pop("task"), result.pop("unit"), result.pop("rows")) == (name, "percent", {"validation": ROWS})
    labels = {"qqp": "40 held-out train rows", "mnli": "40 of 9,815 matched rows", "rte": "40 of 277 validation rows"}
    found = result.pop("labels")
    assert list(found) == ["validation"]
    assert found["validation"] == labels.get(name, found["validation"])
    assert result == pytest.approx(expected, abs=1e-4 if form == "server" else 1e-9)


def test_a_table_file_stands_for_a_folder(data, tmp_path, capsys):
    guesses("rte", table_of(data, "rte")).to_parquet(tmp_path / "p.parquet")
    given = ("--task", "rte", "--predictions", tmp_path / "p.parquet", "--data")
    assert score(capsys, *given, data / "glue/rte/validation.parquet") == score(capsys, *given, data)


def test_the_predictions_of_a_study_score_both_sets_of_mnli(data, tmp_path, capsys):
    """AX, which a study keeps in the same file, has no labels and so no score."""
    parts, expected = [], {}
    for split, prefix in (("validation", ""), ("validation_mismatched", "mismatched_")):
        table = table_of(data, "mnli", split)
        part = guesses("mnli", table)
        labels = part.merge(table[["idx", "label"]], on="idx")["label"].to_numpy()
        expected[f"{prefix}accuracy"] = 100 * float((part["prediction"].to_numpy() == labels).mean())
        parts.append(part.assign(split=split))
    parts.append(pd.DataFrame({"split": "ax", "idx": range(5), "prediction": 0}))
    path = tmp_path / "predictions.parquet"
    pd.concat(parts).to_parquet(path)
    given = ("--task", "mnli", "--data", data, "--predictions", path)
    result = score(capsys, *given)
    assert result["rows"] == {"validation": ROWS, "validation_mismatched": ROWS}
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    second = score(capsys, *given, "--split", "validation_mismatched")
    assert "accuracy" not in second
    assert second["mismatched_accuracy"] == result["mismatched_accuracy"]


def test_squad_v1_from_json_gz_and_parquet(data, tmp_path, capsys):
    """Every answer is right but two: one shares one word of two, the other none. "mat" has one
    word: 2 * 1 * .5 / 1.5 = 2 / 3."""
    texts = {f"q{row}": f"number {row}" for row in range(12)} | {"q0": "mat red", "q1": "dog"}
    (tmp_path / "p.json").write_text(json.dumps(texts))
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps(texts).encode()))
    pd.DataFrame({"id": texts.keys(), "prediction": texts.values()}).to_parquet(tmp_path / "p.parquet")
    for name in ("p.json", "p.json.gz", "p.parquet"):
        result = score(capsys, "--task", "squad_v1.1", "--data", data, "--predictions", tmp_path / name)
        assert result["exact_match"] == pytest.approx(100 * 10 / 12)
        assert result["f1"] == pytest.approx(100 * (10 + 2 / 3) / 12)


def test_squad_v2_with_null_odds(data, tmp_path, capsys):
    """Predictions in the official format count as given, whatever their odds; only the best
    thresholds use the odds."""
    texts = {f"q{row}": f"number {row}" if row % 2 else "" for row in range(12)}
    odds = {f"q{row}": float(row - 6) for row in range(12)}
    golds = [{"id": f"q{row}", "answers": [f"number {row}", "mat"] if row % 3 else []} for row in range(12)]
    (tmp_path / "p.json").write_text(json.dumps(texts))
    (tmp_path / "odds.json").write_text(json.dumps(odds))
    given = ("--task", "squad_v2.0", "--data", data, "--predictions")
    plain = score(capsys, *given, tmp_path / "p.json")
    both = score(capsys, *given, tmp_path / "p.json", "--null-odds", tmp_path / "odds.json")
    assert "best_f1" not in plain
    assert {key: both[key] for key in plain} == plain
    expected = score_v2(texts, golds, odds)
    assert both["best_f1"] == pytest.approx(100 * expected["best_f1"])
    assert both["best_f1_thresh"] == expected["best_f1_thresh"]
    assert (both["HasAns_total"], both["NoAns_total"], both["total"]) == (8, 4, 12)
    assert both["HasAns_exact"] == pytest.approx(100 * sum(row % 2 for row in range(12) if row % 3) / 8)
    # A study's table answers every question; its odds say which answers count.
    table = pd.DataFrame({"id": texts.keys(), "prediction": texts.values(), "null_odds": odds.values()})
    table.to_parquet(tmp_path / "p.parquet")
    own = score(capsys, *given, tmp_path / "p.parquet")
    assert own["f1"] == pytest.approx(100 * expected["f1"])
    assert own["best_f1"] == both["best_f1"]


def test_the_released_predictions_score_as_published(real_data, capsys):
    path = real_data / "squad/reference_predictions/bert_ensemble_v1.1.json.gz"
    result = score(capsys, "--task", "squad_v1.1", "--data", real_data, "--predictions", path)
    assert result["rows"] == {"validation": 10_570}
    assert (round(result["exact_match"], 2), round(result["f1"], 2)) == (86.21, 92.20)


def test_score_needs_no_torch(data, tmp_path):
    guesses("cola", table_of(data, "cola")).to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    code = (
        "import sys; from mobilebert.cli.main import main\n"
        f"assert main(['score', '--task', 'cola', '--data', {str(data)!r}, '--predictions', {str(tmp_path / 'p.tsv')!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)
