"""Scores of a task with a model that knows the answers."""

import numpy as np
import pandas as pd
import pytest
from word_tokens import VOCAB, WORDS, word_tokenizer

from mobilebert.data.examples import Examples, table_file
from mobilebert.evaluation.scoring import evaluate, outputs
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.util.errors import Diverged


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return word_tokenizer(tmp_path_factory.mktemp("words"))


def write(folder, task, role, frame):
    path = table_file(folder, task, role)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)
    return frame


def setting(task, **fields):
    return FinetuneConfig.model_construct(**{"task": task, "length": 32, "eval_rows": None} | fields)


def classes(count, size, seed, columns=("premise", "hypothesis"), labels=None):
    """Return texts of many lengths whose second word, w<class>, tells the class; and classes."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, count, size)
    texts = [["w30", f"w{label}", *rng.choice(WORDS[10:], rng.integers(0, 12))] for label in found]
    frame = pd.DataFrame({columns[0]: [" ".join(text) for text in texts]})
    for column in columns[1:]:
        frame[column] = "w39"
    frame["label"] = found if labels is None else labels
    frame["idx"] = rng.permutation(size) + 1000
    return frame, found


def knowing(count):
    """Return a model that reads the class off the second word, so that mixed-up rows show."""

    def forward(batch):
        return {"logits": np.eye(count, dtype=np.float32)[batch["input_ids"][:, 2] - VOCAB.index("w0")]}

    return forward


def shares(labels, count):
    return [np.mean(labels == label) for label in range(count)]


def test_outputs_come_back_in_the_rows_order():
    examples = Examples(
        [np.full(1 + row * 7 % 13, row) for row in range(150)], [np.zeros(1 + row * 7 % 13) for row in range(150)], 0
    )
    sizes = []

    def forward(batch):
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
        sizes.append(len(batch["input_ids"]))
        return {"logits": batch["input_ids"][:, :1].astype(float)}

    told = []
    found = outputs(forward, examples, ("logits",), done=told.append)["logits"]
    assert [value[0] for value in found] == list(range(150))
    assert sorted(sizes) == [11] * 6 + [12] * 7  # one batch for each of the 13 lengths
    assert told == sizes


def test_rows_that_fill_up_a_small_batch_are_not_in_the_outputs():
    examples = Examples([np.full(3 + row // 2, row) for row in range(5)], [np.zeros(3 + row // 2) for row in range(5)], 0)
    sizes, told = [], []

    def forward(batch):
        sizes.append(len(batch["input_ids"]))
        return {name: batch["input_ids"][:, :1].astype(float) for name in ("logits", "start_logits")}

    assert [value[0] for value in outputs(forward, examples, ("logits",), done=told.append)["logits"]] == list(range(5))
    assert (sizes, told) == ([4, 4, 4], [1, 2, 2])
    sizes.clear()
    assert [value[0] for value in outputs(forward, examples, ("logits",), size=1)["logits"]] == list(range(5))
    outputs(forward, examples, ("start_logits",))
    assert sizes == [1] * 5 + [1, 2, 2]


def test_a_model_that_knows_the_labels_scores_one(tokenizer, tmp_path):
    frame, labels = classes(2, 150, 0, ("sentence",))
    write(tmp_path, "sst2", "validation", frame)
    metrics, details = evaluate(knowing(2), tokenizer, tmp_path, setting("sst2"), tmp_path)
    assert metrics["accuracy"] == 1.0
    assert metrics["majority"] == max(shares(labels, 2))
    assert details["rows"] == {"validation": 150}
    assert details["shares"]["validation"] == details["label_shares"]["validation"] == shares(labels, 2)
    found = pd.read_parquet(tmp_path / "predictions.parquet")
    assert found["idx"].tolist() == frame["idx"].tolist()
    assert found["prediction"].tolist() == found["label"].tolist() == labels.tolist()
    assert set(found["split"]) == {"validation"}


def test_a_constant_prediction_scores_the_share_of_its_class(tokenizer, tmp_path):
    _, labels = frame, _ = classes(2, 150, 1, ("sentence",))
    labels = frame["label"].to_numpy()
    write(tmp_path, "sst2", "validation", frame)

    def forward(batch):
        return {"logits": np.tile([0.0, 1.0], (len(batch["input_ids"]), 1))}

    metrics, details = evaluate(forward, tokenizer, tmp_path, setting("sst2"), tmp_path)
    assert metrics["accuracy"] == pytest.approx(np.mean(labels == 1))
    assert details["shares"]["validation"] == [0.0, 1.0]
    assert details["label_shares"]["validation"] == shares(labels, 2)


def test_mnli_has_two_validation_sets_and_ax(tokenizer, tmp_path):
    matched, labels = classes(3, 90, 2)
    other, wrong = classes(3, 40, 3)
    other["label"] = (wrong + 1) % 3
    hidden, ax = classes(3, 20, 4, labels=-1)
    for task, role, frame in (("mnli", "validation", matched), ("mnli", "validation_mismatched", other), ("ax", "test", hidden)):
        write(tmp_path, task, role, frame)
    metrics, details = evaluate(knowing(3), tokenizer, tmp_path, setting("mnli"), tmp_path)
    assert metrics["accuracy"] == 1.0
    assert metrics["mismatched_accuracy"] == 0.0
    assert metrics["mismatched_majority"] == max(shares(wrong, 3))
    assert details["rows"] == {"validation": 90, "validation_mismatched": 40}
    assert details["shares"] == {
        "validation": shares(labels, 3),
        "validation_mismatched": shares(wrong, 3),
        "ax": shares(ax, 3),
    }
    found = pd.read_parquet(tmp_path / "predictions.parquet")
    assert found.groupby("split").size().to_dict() == {"validation": 90, "validation_mismatched": 40, "ax": 20}
    for split, frame, predictions in (
        ("validation", matched, labels),
        ("validation_mismatched", other, wrong),
        ("ax", hidden, ax),
    ):
        part = found[found["split"] == split]
        assert part["idx"].tolist() == frame["idx"].tolist()
        assert part["prediction"].tolist() == predictions.tolist()
        assert part["label"].tolist() == frame["label"].tolist()


def test_regression_is_clipped_to_the_scale(tokenizer, tmp_path):
    frame, codes = classes(6, 60, 5, ("sentence1", "sentence2"))
    frame["label"] = codes.astype(float)
    write(tmp_path, "stsb", "validation", frame)

    def forward(batch):
        score = batch["input_ids"][:, 2] - VOCAB.index("w0")
        return {"logits": np.where(score == 5, 40.0, np.where(score == 0, -40.0, score))[:, None]}

    metrics, details = evaluate(forward, tokenizer, tmp_path, setting("stsb"), tmp_path)
    assert metrics == pytest.approx({"spearmanr": 1.0, "pearson": 1.0})
    assert details["shares"] == {}
    assert pd.read_parquet(tmp_path / "predictions.parquet")["prediction"].tolist() == codes.tolist()


def test_eval_rows_are_the_same_rows_every_time(tokenizer, tmp_path):
    frame, _ = classes(2, 150, 6, ("sentence",))
    write(tmp_path, "sst2", "validation", frame)
    seen = []
    for _ in range(2):
        _, details = evaluate(knowing(2), tokenizer, tmp_path, setting("sst2", eval_rows=40), tmp_path)
        assert details["rows"] == {"validation": 40}
        seen.append(pd.read_parquet(tmp_path / "predictions.parquet")["idx"].tolist())
    assert seen[0] == seen[1]
    assert len(set(seen[0]) & set(frame["idx"])) == 40


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_logits_raise_diverged(tokenizer, tmp_path, value):
    frame, _ = classes(2, 150, 7, ("sentence",))
    write(tmp_path, "sst2", "validation", frame)

    def forward(batch):
        logits = knowing(2)(batch)["logits"]
        logits[-1, 1] = value if len(logits) < 64 else logits[-1, 1]  # in the last batch, of the shortest rows
        return {"logits": logits}

    with pytest.raises(Diverged, match="logits"):
        evaluate(forward, tokenizer, tmp_path, setting("sst2"), tmp_path)
    assert not (tmp_path / "predictions.parquet").exists()


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_with_a_model_that_knows_the_answers(tokenizer, tmp_path, version):
    """The model answers with the word "answer". Without it the model points at the first token,
    which v2.0 reads as "no answer"."""
    table, rng = [], np.random.default_rng(8)
    for index in range(30):
        words = rng.choice(WORDS, 50).tolist()
        answers = {"text": [], "answer_start": []}
        if version == "1.1" or index % 3:
            words[rng.integers(50)] = "answer"
            answers = {"text": ["answer"], "answer_start": [" ".join(words).index("answer")]}
        table.append({"id": f"q{index}", "title": "t", "context": " ".join(words), "question": "w1 w2", "answers": answers})
    name = f"squad_v{version}"
    write(tmp_path, name, "validation", pd.DataFrame(table))

    def forward(batch):
        logits = 9.0 * (batch["input_ids"] == VOCAB.index("answer"))
        logits[:, 0] += 3.0
        return {"start_logits": logits, "end_logits": logits}

    options = setting(name, length=48, doc_stride=12, max_query_length=16, max_answer_length=5)
    metrics, details = evaluate(forward, tokenizer, tmp_path, options, tmp_path)
    assert metrics["f1"] == metrics["exact_match"] == 1.0
    assert details["rows"] == {"validation": 30}
    assert details["windows"] > 30
    empty = 10 / 30 if version == "2.0" else 0.0
    assert details["shares"]["validation"] == pytest.approx([1 - empty, empty])
    assert set(pd.read_parquet(tmp_path / "predictions.parquet")["id"]) == {f"q{index}" for index in range(30)}

    def broken(batch):
        return forward(batch) | {"end_logits": np.full(batch["input_ids"].shape, np.nan)}

    with pytest.raises(Diverged, match="end_logits"):
        evaluate(broken, tokenizer, tmp_path, options, tmp_path)
