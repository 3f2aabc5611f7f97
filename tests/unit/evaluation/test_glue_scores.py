"""GLUE scores against scikit-learn and SciPy, the leaderboard's mean, and checks of tables."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

import mobilebert.evaluation
from mobilebert.data.glue import check_table
from mobilebert.evaluation import glue
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

quick = settings(max_examples=60, deadline=None)


def pairs(values):
    return st.lists(st.tuples(values, values), min_size=1, max_size=40).map(lambda rows: np.array(rows).T)


@quick
@given(pairs(st.integers(0, 1)))
def test_two_classes_against_scikit_learn(rows):
    predictions, labels = rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (
            sk.accuracy_score(labels, predictions),
            sk.f1_score(labels, predictions, zero_division=0.0),
            sk.matthews_corrcoef(labels, predictions),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one class only, constant predictions: 0.0 by definition, not by a warning
        found = (
            glue.accuracy(predictions, labels),
            glue.f1(predictions, labels),
            glue.matthews_correlation(predictions, labels),
        )
    assert found == pytest.approx(expected, abs=1e-12)


@quick
@given(pairs(st.integers(0, 2)))
def test_matthews_of_three_classes_against_scikit_learn(rows):
    predictions, labels = rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.matthews_corrcoef(labels, predictions)
        warnings.simplefilter("error")
        assert glue.matthews_correlation(predictions, labels) == pytest.approx(expected, abs=1e-12)


def test_matthews_does_not_overflow():
    labels = np.arange(400_000) % 2
    assert glue.matthews_correlation(labels, labels) == 1.0
    assert glue.matthews_correlation(1 - labels, labels) == -1.0


@quick
@given(pairs(st.one_of(st.integers(0, 25).map(lambda n: n / 5), st.floats(-9, 9, width=16))))
def test_correlations_against_scipy(rows):
    predictions, labels = rows
    for found, oracle in ((glue.pearson, stats.pearsonr), (glue.spearman, stats.spearmanr)):
        if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            assert found(predictions, labels) == 0.0
        else:
            assert found(predictions, labels) == pytest.approx(oracle(predictions, labels)[0], abs=1e-9)


@quick
@given(pairs(st.integers(0, 1)), st.sampled_from(["labels", "predictions", "both"]), st.integers(0, 1))
def test_one_class_only_has_a_defined_value(rows, which, constant):
    """Matthews would divide by zero and is 0.0; F1 is 0.0 if class 1 is never right."""
    predictions, labels = rows
    if which != "labels":
        predictions = np.full_like(predictions, constant)
    if which != "predictions":
        labels = np.full_like(labels, constant)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {**glue.score("mrpc", predictions, labels), **glue.score("cola", predictions, labels)}
    expected = {
        "accuracy": sk.accuracy_score(labels, predictions),
        "f1": sk.f1_score(labels, predictions, zero_division=0.0),
        "matthews_correlation": 0.0,
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.is_squad])
def test_a_constant_prediction_scores_without_warning(name):
    task = TASKS[name]
    labels = np.linspace(0.1, 5, 12) if task.is_regression else np.arange(12) % task.num_labels
    constant = np.full(12, 0.1 if task.is_regression else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = glue.score(name, constant, labels)
        perfect = glue.score(name, labels, labels)
    assert tuple(scores) == task.metrics
    assert scores == {name: 1 / task.num_labels if name == "accuracy" else 0.0 for name in task.metrics}
    assert perfect == pytest.approx(dict.fromkeys(task.metrics, 1.0))


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "message"),
    [
        ("colla", [0], [0], "allowed: cola"),
        ("squad_v1.1", [0], [0], "allowed: cola"),
        ("cola", [0, 1], [0], r"\(2,\)"),
        ("cola", [], [], "not empty"),
        ("ax", [0], [-1], "hidden"),
        ("sst2", [2], [1], "classes 0 to 1"),
        ("stsb", [math.nan], [1.0], "finite"),
    ],
)
def test_score_refuses(task, predictions, labels, message):
    with pytest.raises(UserError, match=message):
        glue.score(task, predictions, labels)


# BERT_BASE's row of the GLUE leaderboard; Table 4 of the paper prints its score as 78.3.
BERT_BASE = {
    "cola": {"matthews_correlation": 52.1},
    "sst2": {"accuracy": 93.5},
    "mrpc": {"f1": 88.9, "accuracy": 84.8},
    "stsb": {"pearson": 87.1, "spearmanr": 85.8},
    "qqp": {"f1": 71.2, "accuracy": 89.2},
    "mnli": {"accuracy": 84.6},
    "mnli_mismatched": {"accuracy": 83.4},
    "qnli": {"accuracy": 90.5},
    "rte": {"accuracy": 66.4},
    "wnli": {"accuracy": 65.1},
}


def test_glue_score_of_a_leaderboard_row():
    assert round(glue.glue_score(BERT_BASE), 1) == 78.3


@pytest.mark.parametrize("name", sorted(set(BERT_BASE) - {"mnli_mismatched"}))
def test_glue_score_needs_nine_tasks(name):
    with pytest.raises(UserError, match=f"missing: {name} "):
        glue.glue_score({task: scores for task, scores in BERT_BASE.items() if task != name})


@pytest.mark.parametrize(
    ("cells", "mean"),
    [
        ((33.6, 90.4, 84.4, 72.3, 63.1, 74.1, 74.5, 79.8, 58.9), 69.60),
        ((50.5, 92.8, 88.8, 84.4, 70.2, 83.3, 82.6, 90.6, 66.2), 78.31),
        ((51.1, 92.6, 88.8, 84.8, 70.5, 84.3, 83.4, 91.6, 70.4), 79.21),
    ],
)
def test_mean_of_cells_of_table_4(cells, mean):
    columns = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE")
    assert glue.mean_of_cells(dict(zip(columns, cells))) == pytest.approx(mean, abs=0.006)


def test_mean_of_no_cells():
    with pytest.raises(UserError):
        glue.mean_of_cells({})


@quick
@given(st.lists(st.integers(0, 2), min_size=1))
def test_share(predictions):
    found = glue.share(predictions, 3)
    assert found == [predictions.count(label) / len(predictions) for label in range(3)]


def test_share_of_regression_is_empty():
    assert glue.share([0.5, 4.5], 1) == []


def table(name: str) -> pd.DataFrame:
    """Return two valid rows of a task."""
    task = TASKS[name]
    if task.is_squad:
        answers = [{"text": ["was"], "answer_start": [3]}] * 2
        return pd.DataFrame({"id": ["a", "b"], "title": "t", "context": "it was", "question": "q?", "answers": answers})
    columns = {column: ["one", "two"] for column in task.text_columns}
    return pd.DataFrame({**columns, "label": [0.5, 5.0] if task.is_regression else [0, 1], "idx": [4, 7]})


@pytest.mark.parametrize("name", TASKS)
def test_check_table_accepts_each_task(name):
    check_table(table(name), TASKS[name], "test" if name == "ax" else "train", "f")


def replaced(name, **columns):
    return table(name).assign(**columns)


@pytest.mark.parametrize(
    ("name", "split", "frame", "message"),
    [
        ("rte", "dev", table("rte"), "no split 'dev'; allowed: train, validation, test"),
        ("rte", "train", table("rte").drop(columns="sentence2"), "no column sentence2"),
        ("rte", "train", table("rte").iloc[:0], "is empty"),
        ("rte", "train", replaced("rte", sentence1=["x", None]), "column sentence1 holds 1 values.*row 1"),
        ("rte", "train", replaced("rte", idx=[4, 4]), "1 rows repeat the idx.*first idx 4"),
        ("rte", "train", replaced("rte", idx=["4", "5"]), "column idx is of type"),
        ("rte", "train", replaced("rte", label=[0, 2]), "1 labels.*first 2 at idx 7; allowed: 0 to 1$"),
        ("rte", "train", replaced("rte", label=pd.array([0, None], dtype="Int64")), "1 labels"),
        ("rte", "train", replaced("rte", label=[-1, 0]), "first -1 at idx 4"),
        ("rte", "train", replaced("rte", label=["no", "yes"]), "label of rte is of type"),
        ("stsb", "train", replaced("stsb", label=[0.5, 5.1]), "first 5.1 at idx 7; allowed: 0.0 to 5.0"),
        ("stsb", "train", replaced("stsb", label=[0.5, math.nan]), "1 labels"),
        ("rte", "test", replaced("rte", label=[-1, 3]), "first 3 at idx 7; allowed: 0 to 1, or -1"),
        ("squad_v2.0", "train", table("squad_v2.0").drop(columns="answers"), "no column answers"),
        ("squad_v2.0", "train", replaced("squad_v2.0", id="a"), "1 rows repeat the id.*first id a"),
        ("squad_v2.0", "train", replaced("squad_v2.0", context=["it was", "as it was"]), "1 questions.*first id b"),
        ("squad_v2.0", "train", replaced("squad_v2.0", answers=["was", "was"]), "id a must hold the lists"),
        ("squad_v1.1", "train", replaced("squad_v1.1", answers=[{"text": [], "answer_start": []}] * 2), "2 questions"),
        ("squad_v1.1", "train", replaced("squad_v1.1", answers=[{"text": ["was"], "answer_start": []}] * 2), "id a"),
    ],
)
def test_check_table_refuses_in_one_line(name, split, frame, message):
    with pytest.raises(UserError, match=message) as caught:
        check_table(frame, TASKS[name], split, "data/file.parquet")
    assert str(caught.value).startswith("data/file.parquet: ")
    assert "\n" not in str(caught.value)


def test_check_table_accepts_hidden_test_labels_and_unanswerable_questions():
    check_table(replaced("rte", label=-1), TASKS["rte"], "test", "f")
    check_table(replaced("squad_v2.0", answers=[{"text": [], "answer_start": []}] * 2), TASKS["squad_v2.0"], "train", "f")


@pytest.mark.parametrize("name", TASKS)
def test_real_tables_pass(name, real_data):
    task = TASKS[name]
    files = {role: real_data / task.folder / f"{stem}.parquet" for role, stem in task.splits.items()}
    for role in ("train", "validation"):
        assert role not in files or files[role].is_file()
    for role, file in files.items():
        if file.is_file():
            check_table(pd.read_parquet(file), task, role, str(file))


def test_evaluate_modules_load_from_their_folder_without_network(tmp_path):
    folder = Path(mobilebert.evaluation.__file__).parent / "metrics"
    program = """
import json, sys, evaluate
glue = evaluate.load(sys.argv[1] + "/glue", "mrpc").compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1])
stsb = evaluate.load(sys.argv[1] + "/glue", "stsb").compute(predictions=[0.5, 1.5, 2], references=[0, 1, 3])
golds = [{"id": "a", "answers": {"text": ["the cat"], "answer_start": [0]}}]
v1 = evaluate.load(sys.argv[1] + "/squad", "squad_v1.1").compute(
    predictions=[{"id": "a", "prediction_text": "cat!"}], references=golds)
v2 = evaluate.load(sys.argv[1] + "/squad", "squad_v2.0").compute(
    predictions=[{"id": "a", "prediction_text": "cat!", "null_odds": 1.0}], references=golds, threshold=0.5)
print(json.dumps([glue, stsb, v1, v2]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    mrpc, stsb, v1, v2 = json.loads(done.stdout.splitlines()[-1])
    assert mrpc == glue.score("mrpc", [0, 1, 1, 1], [0, 1, 0, 1])
    assert stsb == pytest.approx(glue.score("stsb", [0.5, 1.5, 2], [0, 1, 3]))
    assert v1 == {"exact_match": 1.0, "f1": 1.0}
    assert (v2["exact_match"], v2["best_exact"], v2["best_exact_thresh"]) == (0.0, 1.0, 1.0)
