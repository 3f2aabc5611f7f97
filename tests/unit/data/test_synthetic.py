"""The synthetic tables are solvable, and only by their labels.

Linear models on words and word pairs are the oracle.
"""

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import hstack
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from mobilebert.data.glue import check_table
from mobilebert.data.sources import open_source
from mobilebert.data.synthetic import LANGUAGE, NOISE, TABLE_VERSIONS
from mobilebert.study.tasks import TASKS

ROLES = [(name, role) for name, task in TASKS.items() for role in task.splits]
CLASSIFICATION = ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"]


@pytest.fixture(scope="module")
def source():
    return open_source("synthetic")


def features(source, task, *splits):
    """Return word and word-pair counts of the texts, fitted on the first split; and labels."""
    tables = [source.table(task, split) for split in splits]
    blocks = [[] for _ in tables]
    for column in TASKS[task].text_columns:
        vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", binary=True).fit(tables[0][column])
        for block, table in zip(blocks, tables):
            block.append(vectorizer.transform(table[column]))
    return [hstack(block).tocsr() for block in blocks], [table["label"].to_numpy() for table in tables]


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_tables_have_the_columns_of_the_real_tasks(source, name, role):
    task = TASKS[name]
    table = source.table(name, task.splits[role])
    check_table(table, task, role, "synthetic")
    assert list(table.columns) == list(task.columns)
    if role.startswith("test"):
        assert (table["label"] == -1).all()
    assert source.label(name, task.splits[role]) == f"{len(table)} synthetic rows"


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_classification_is_solvable_and_shuffled_labels_are_not(source, task):
    splits = [split for split in source.splits(task) if not split.startswith("test")]
    (train, *validation), (labels, *expected) = features(source, task, *splits)
    model = LogisticRegression(max_iter=300).fit(train, labels)
    shuffled = np.random.default_rng(0).permutation(labels)
    control = LogisticRegression(max_iter=300).fit(train, shuffled)
    for rows, truth in zip(validation, expected):
        majority = np.bincount(truth).max() / len(truth)
        assert majority < 0.65
        assert model.score(rows, truth) > majority + 0.2
        assert control.score(rows, truth) < majority + 0.12


@pytest.mark.parametrize("seed", [0, 3])
def test_sentiment_cannot_be_told_from_which_words_there_are(seed):
    """Every bag of words has both labels equally often: no function of it beats one half."""
    source = open_source("synthetic", seed=seed)
    for split in ("train", "validation"):
        table = source.table("sst2", split)
        bags = [Counter(tuple(sorted(text.split())) for text in table["sentence"][table["label"] == label]) for label in (0, 1)]
        assert bags[0] == bags[1]
        assert bags[0].total() == len(table) / 2
        words = {word for text in table["sentence"] for word in text.split()}
        assert words >= {*LANGUAGE.good[:4], *LANGUAGE.bad[:4], *LANGUAGE.negations}
    train, validation = (source.table("sst2", split) for split in ("train", "validation"))
    counts = CountVectorizer(token_pattern=r"\S+").fit(train["sentence"])
    model = LogisticRegression().fit(counts.transform(train["sentence"]), train["label"])
    assert model.score(counts.transform(validation["sentence"]), validation["label"]) == 0.5


def test_the_first_word_decides_sentiment_but_for_the_noise(source):
    for split in ("train", "validation"):
        table = source.table("sst2", split)
        guess = table["sentence"].map(lambda text: int(text.split()[0] in LANGUAGE.good))
        assert 0 < (guess != table["label"]).mean() < 2 * NOISE


def test_similarity_is_solvable(source):
    (train, validation), (labels, expected) = features(source, "stsb", "train", "validation")
    assert pearsonr(Ridge().fit(train, labels).predict(validation), expected)[0] > 0.6
    shuffled = np.random.default_rng(0).permutation(labels)
    assert abs(pearsonr(Ridge().fit(train, shuffled).predict(validation), expected)[0]) < 0.3


@pytest.mark.parametrize("task", ["squad_v1.1", "squad_v2.0"])
def test_answers_follow_the_cue_of_their_question(source, task):
    """Train tells, by question word, the word before the answer; it finds it on validation."""
    train, validation = source.table(task, "train"), source.table(task, "validation")
    cues = {}
    for row in train.itertuples():
        if row.answers["text"]:
            before = row.context[: row.answers["answer_start"][0]].split()[-1]
            cues.setdefault(row.question.split()[0], set()).add(before)
    assert all(len(found) == 1 for found in cues.values())
    hits = first = 0
    for row in validation.itertuples():
        words = row.context.split()
        cue = next(iter(cues[row.question.split()[0]]))
        found = words[words.index(cue) + 1] if cue in words else ""
        texts = [text.split() for text in row.answers["text"]] or [[""]]
        hits += any(found in text for text in texts)
        first += any(words[0] in text for text in texts)
    assert hits == len(validation), "even the unanswerable ones are recognisable: their cue is absent"
    assert first == 0
    answerable = validation["answers"].map(lambda answers: len(answers["text"]) > 0)
    assert answerable.mean() == pytest.approx(1.0 if task == "squad_v1.1" else 2 / 3, abs=0.02)
    assert validation["context"].map(lambda text: len(text.split())).max() <= 60


def test_sentences_are_short_and_of_the_corpus_vocabulary(source):
    corpus = {word for document in source.documents() for word in document.split()}
    assert 250 <= len(corpus) <= 350
    for task, role in ROLES:
        table = source.table(task, TASKS[task].splits[role])
        for column in TASKS[task].text_columns:
            words = table[column].str.split()
            assert set().union(*words) <= corpus
            if column != "context":
                assert words.map(len).max() <= 18
                assert words.map(len).mean() <= 14


def test_bigram_entropy_is_far_below_unigram_entropy(source):
    """So a masked LM can learn: held-out bigram entropy is far below unigram entropy."""
    documents = [document.split() for document in source.documents()]
    vocabulary = {word: index for index, word in enumerate(sorted({word for words in documents for word in words}))}
    counts = np.full((len(vocabulary), len(vocabulary)), 0.02)
    ids = [[vocabulary[word] for word in words] for words in documents]
    for words in ids[:500]:
        np.add.at(counts, (words[:-1], words[1:]), 1)
    heldout = [(first, second) for words in ids[500:] for first, second in pairwise(words)]
    first, second = np.array(heldout).T
    bigram = -np.log(counts[first, second] / counts.sum(1)[first]).mean()
    unigram = -np.log(counts.sum(0)[second] / counts.sum()).mean()
    assert bigram < unigram - 1.5


def test_documents_keep_to_a_topic(source):
    """So NSP can be learnt: halves of one document share more words than halves of two."""
    halves = []
    for document in source.documents():
        words = document.split()
        halves.append((set(words[: len(words) // 2]), set(words[len(words) // 2 :])))
    same = [len(a & b) / len(b) for a, b in halves]
    other = [len(halves[i - 1][0] & halves[i][1]) / len(halves[i][1]) for i in range(len(halves))]
    assert np.mean(same) > np.mean(other) + 0.2


def test_the_seed_alone_decides(source):
    other = open_source("synthetic", seed=3)
    program = (
        "import hashlib; from mobilebert.data.sources import open_source; s = open_source('synthetic', seed=3);"
        "t = s.table('mnli', 'train').to_json() + s.table('squad_v2.0', 'validation').to_json();"
        "print(hashlib.sha256((t + ''.join(s.documents())).encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    text = "".join(other.documents())  # read in another order than in the program
    text = other.table("mnli", "train").to_json() + other.table("squad_v2.0", "validation").to_json() + text
    assert run.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()
    assert not other.table("cola", "train").equals(source.table("cola", "train"))
    assert other.files("cola") != source.files("cola")
    pd.testing.assert_frame_equal(open_source("synthetic").table("cola", "train"), source.table("cola", "train"))
    few = list(open_source("synthetic", documents=7).documents())
    assert few == list(source.documents())[:7]


@pytest.mark.parametrize(
    ("seed", "sst2", "mnli", "corpus"),
    [
        (0, "d7828f4c752a8fba", "ea847e8535ca52e9", "0a85220eff900cbe"),
        (3, "d465cd0056a5db4c", "38aec579efb3d66b", "7024a73812204788"),
    ],
)
def test_the_text_of_a_version_never_changes(seed, sst2, mnli, corpus):
    """Other text needs new GENERATOR_VERSION or TABLE_VERSIONS: they name data in records."""
    source = open_source("synthetic", seed=seed)
    tables = [source.table("sst2", "train"), source.table("mnli", "train")]
    texts = [*(table.to_csv(index=False) for table in tables), "\n".join(source.documents())]
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == [sst2, mnli, corpus]


def test_a_table_of_another_version_is_other_data(source, monkeypatch):
    before = {name: source.files(name) for name in ("sst2", "cola", "corpus")}
    monkeypatch.setitem(TABLE_VERSIONS, "sst2", 99)
    assert [name for name in before if source.files(name) != before[name]] == ["sst2"]
