"""Batches of a task's rows, and scoring with a model that knows the answers."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilebert.data.examples import Examples, encode, sample, table_file
from mobilebert.data.tokenizer import build_tokenizer
from mobilebert.evaluation.scoring import evaluate, outputs
from mobilebert.study.stage_config import FinetuneConfig
from mobilebert.util.errors import Diverged

EXAMPLES = settings(max_examples=40, deadline=None)
PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = [f"w{index}" for index in range(40)]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "answer"]


class Vocabulary:
    """A source that has a vocabulary alone."""

    def __init__(self, path):
        self.path, self.spec = path, "words"

    def vocab(self):
        return self.path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return build_tokenizer(Vocabulary(folder / "vocab.txt"), folder / "tokenizer", None)


def ids(*words):
    return [VOCAB.index(word) for word in words]


# --- batches


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=120))
    return Examples(
        [np.arange(1, size + 1) + 100 * row for row, size in enumerate(lengths)],
        [np.arange(size) % 2 for size in lengths],
        pad=9,
        targets={"labels": np.arange(len(lengths)) * 10},
    )


@EXAMPLES
@given(rows(), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_has_every_row_once(examples, size, seed, epoch):
    batches = examples.epoch(size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(examples)))
    assert len(batches) == -(-len(examples) // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)  # one batch may be short


@EXAMPLES
@given(rows(), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_function_of_seed_and_epoch(examples, size, seed, epoch):
    first = examples.epoch(size, seed, epoch)
    examples.epoch(size, seed + 1, epoch + 1)
    np.random.seed(0)
    again = examples.epoch(size, seed, epoch)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]


def test_epochs_and_seeds_differ():
    examples = Examples([np.ones(5)] * 200, [np.zeros(5)] * 200, 0)
    orders = {tuple(np.concatenate(examples.epoch(8, seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_epochs_batches_have_rows_of_like_lengths():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    examples = Examples([np.ones(size) for size in lengths], [np.zeros(size) for size in lengths], 0)
    batches = examples.epoch(10, 0, 0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()  # at random it is 1.8 times
    widest = [lengths[batch].max() for batch in batches[:50]]  # one bucket: rising lengths would mean no shuffle
    assert widest != sorted(widest)


@EXAMPLES
@given(rows(), st.integers(1, 20))
def test_batches_for_prediction_have_every_row_once_the_longest_first(examples, size):
    batches = examples.by_length(size)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(examples)))
    assert (np.diff(examples.lengths[order]) <= 0).all()
    assert max(map(len, batches)) <= size
    counts = np.unique(examples.lengths, return_counts=True)[1]
    assert len(batches) == sum(-(-count // size) for count in counts)  # the fewest possible


@EXAMPLES
@given(rows(), st.integers(1, 20))
def test_a_batch_for_prediction_has_no_padding(examples, size):
    for chosen in examples.by_length(size):
        batch = examples.batch(chosen, multiple=1)
        assert batch["attention_mask"].all()
        assert batch["input_ids"].tolist() == [examples.ids[row].tolist() for row in chosen]


@EXAMPLES
@given(rows(), st.data())
def test_a_batch_is_its_rows_padded_to_a_multiple_of_eight(examples, data):
    chosen = np.array(data.draw(st.lists(st.integers(0, len(examples) - 1), min_size=1, max_size=8)))
    batch = examples.batch(chosen)
    longest, width = max(examples.lengths[chosen]), batch["input_ids"].shape[1]
    assert width % 8 == 0
    assert longest <= width < longest + 8
    assert (batch["labels"] == chosen * 10).all()
    for place, row in enumerate(chosen):
        size, rest = examples.lengths[row], width - examples.lengths[row]
        assert batch["input_ids"][place].tolist() == [*examples.ids[row], *[9] * rest]
        assert batch["attention_mask"][place].tolist() == [1] * size + [0] * rest
        assert batch["token_type_ids"][place].tolist() == [*examples.types[row], *[0] * rest]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


# --- rows


@EXAMPLES
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 9))
def test_a_sample_is_some_rows_in_their_order(size, wanted, seed):
    frame = pd.DataFrame({"idx": np.arange(size) * 3, "label": np.arange(size)}, index=np.arange(size)[::-1])
    found = sample(frame, wanted, seed)
    pd.testing.assert_frame_equal(found, sample(frame, wanted, seed))
    assert len(found) == min(size, wanted)
    assert found["idx"].is_monotonic_increasing
    assert found["idx"].is_unique
    assert (found["idx"] == found["label"] * 3).all()
    pd.testing.assert_frame_equal(sample(frame, None, seed), frame)


def test_a_sample_is_drawn_with_the_seed_from_the_whole_table():
    frame = pd.DataFrame({"idx": np.arange(100)})
    draws = [set(sample(frame, 20, seed)["idx"]) for seed in range(60)]
    assert len(set(map(frozenset, draws))) == 60
    assert set.union(*draws) == set(range(100))


def test_encoded_rows(tokenizer):
    frame = pd.DataFrame({"sentence": ["w1 w2", "w3 nonsense"], "label": [1, 0]})
    examples = encode(tokenizer, "sst2", frame, 16)
    assert [row.tolist() for row in examples.ids] == [[CLS, *ids("w1", "w2"), SEP], [CLS, *ids("w3"), UNK, SEP]]
    assert [row.tolist() for row in examples.types] == [[0] * 4] * 2
    assert examples.pad == PAD
    assert examples.targets["labels"].tolist() == [1, 0]
    assert examples.targets["labels"].dtype == np.int64


def test_encoded_pairs(tokenizer):
    frame = pd.DataFrame({"sentence1": ["w1 w2"], "sentence2": ["w3"], "label": [2.5]})
    examples = encode(tokenizer, "stsb", frame, 16)
    assert examples.ids[0].tolist() == [CLS, *ids("w1", "w2"), SEP, *ids("w3"), SEP]
    assert examples.types[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert examples.targets["labels"].dtype == np.float32


def berts_cut(a, b, room):
    """Cut as Devlin et al. 2019, `run_classifier.py`: one token at a time off the longer text, off
    the second if both are equal."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


@EXAMPLES
@given(st.integers(1, 30), st.integers(1, 30), st.integers(8, 40))
def test_a_pair_is_cut_to_length_from_the_ends_of_the_longer_text(tokenizer, first, second, length):
    """The cut is BERT's, but for one odd token if both texts exceed half of the room."""
    frame = pd.DataFrame({"sentence1": [" ".join(WORDS[:first])], "sentence2": [" ".join(WORDS[:second])], "label": [0]})
    examples = encode(tokenizer, "rte", frame, length)
    found, types = examples.ids[0].tolist(), examples.types[0].tolist()
    a, b = berts_cut(WORDS[:first], WORDS[:second], length - 3)
    kept = found.index(SEP) - 1
    assert found == [CLS, *ids(*WORDS[:kept]), SEP, *ids(*WORDS[: len(a) + len(b) - kept]), SEP]
    assert types == [0] * (kept + 2) + [1] * (len(a) + len(b) - kept + 1)
    odd = first + second > length - 3 and min(first, second) > (length - 3) // 2
    assert abs(kept - len(a)) <= odd


def test_a_sentence_is_cut_to_length_and_the_next_call_is_not(tokenizer):
    frame = pd.DataFrame({"sentence": [" ".join(WORDS[:20])], "label": [0]})
    assert encode(tokenizer, "cola", frame, 8).ids[0].tolist() == [CLS, *ids(*WORDS[:6]), SEP]
    assert len(encode(tokenizer, "cola", frame, 40).ids[0]) == 22
    encode(tokenizer, "cola", frame, 8)
    assert len(tokenizer.encode(" ".join(WORDS[:20])).ids) == 22


# --- scores


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
