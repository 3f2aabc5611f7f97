import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest

from mobilebert.data import corpus
from mobilebert.data.corpus import is_heldout, prepare_corpus, unigram_entropy
from mobilebert.data.decontamination import Paragraphs
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer
from mobilebert.study.code_hash import PACKAGE, _read
from mobilebert.util.errors import UserError


class Documents:
    """A source with just what prepare_corpus needs."""

    spec = "test"

    def __init__(self, documents):
        self.list = documents

    def documents(self):
        return iter(self.list)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    source = open_source("synthetic")
    return source, build_tokenizer(source, tmp_path_factory.mktemp("tokenizer"), None)


def prepare(documents, tokenizer, out, paragraphs=(), heldout_share=0.3, **options):
    options = {"heldout_share": heldout_share, "squad_dev_paragraphs": paragraphs, **options}
    return prepare_corpus(Documents(documents), tokenizer, out, **options)


def read_back(out, split):
    """Return documents as lists of sentences, which are lists of ids."""
    tokens, bounds, documents = (np.load(out / f"{split}.{name}.npy") for name in ("tokens", "sentences", "documents"))
    assert (tokens.dtype, bounds.dtype, documents.dtype) == (np.uint16, np.int64, np.int64)
    text = [tokens[start:end].tolist() for start, end in pairwise(bounds)]
    return [text[start:end] for start, end in pairwise(documents)]


def test_files_hold_the_tokens_of_every_document(synthetic, tmp_path):
    source, tokenizer = synthetic
    documents = [*source.documents()][:80]
    counts = prepare([*documents, "", " \n\t"], tokenizer, tmp_path)
    expected = {"train": [], "heldout": []}
    for document in documents:
        digest = hashlib.sha256(document.encode()).hexdigest()
        split = "heldout" if int(digest[:16], 16) / 16**16 < 0.3 else "train"
        expected[split].append(tokenizer.encode(document, add_special_tokens=False).ids)
    for split, whole in expected.items():
        found = read_back(tmp_path, split)
        assert [list(chain.from_iterable(document)) for document in found] == whole
        assert all(len(sentence) for document in found for sentence in document)
        assert counts[f"documents_{split}"] == len(whole)
        assert counts[f"tokens_{split}"] == sum(map(len, whole))
        assert counts[f"sentences_{split}"] == sum(map(len, found))
    assert (counts["documents_read"], counts["documents_empty"], counts["documents_dropped"]) == (82, 2, 0)
    frequencies = Counter(token for document in expected["train"] for token in document)
    total = sum(frequencies.values()) + tokenizer.get_vocab_size()
    heldout = [token for document in expected["heldout"] for token in document]
    entropy = -sum(math.log((frequencies[token] + 1) / total) for token in heldout) / len(heldout)
    assert counts["unigram_entropy"] == pytest.approx(entropy, rel=1e-9)
    # A sentence of this language ends in a mark that occurs nowhere else.
    marks = sum(len(re.findall(r" [.?](?= |$)", document, re.MULTILINE)) for document in documents)
    assert counts["sentences_train"] + counts["sentences_heldout"] == marks
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{split}.{name}.npy" for split in expected for name in ("tokens", "sentences", "documents")
    )


def test_a_document_stays_in_its_split(synthetic, tmp_path):
    source, tokenizer = synthetic
    documents = [*source.documents()][:60]
    prepare(documents, tokenizer, tmp_path / "all")
    prepare(documents[::2], tokenizer, tmp_path / "half")
    for split in ("train", "heldout"):
        all_of_them = read_back(tmp_path / "all", split)
        assert all(document in all_of_them for document in read_back(tmp_path / "half", split))
    assert 0.07 < np.mean([is_heldout(f"document {number}", 0.1) for number in range(2000)]) < 0.13


def test_the_number_of_workers_does_not_change_the_files(synthetic, tmp_path, monkeypatch):
    source, tokenizer = synthetic
    monkeypatch.setattr("mobilebert.data.corpus.BATCH_CHARACTERS", 5000)
    documents, paragraphs = [*source.documents()][:60], source.table("squad_v1.1", "validation")["context"].unique()
    seen = []
    options = {"progress": lambda *numbers: seen.append(numbers)}
    one = prepare(documents, tokenizer, tmp_path / "1", paragraphs, **options)
    two = prepare(documents, tokenizer, tmp_path / "2", paragraphs, workers=2, cache=tmp_path / "cache")
    three = prepare(documents, tokenizer, tmp_path / "3", paragraphs, workers=3, cache=tmp_path / "cache")
    assert one == two == three
    assert one["documents_dropped"] >= 1
    assert seen == sorted(seen)
    assert seen[-1] == (60, one["tokens_train"] + one["tokens_heldout"])
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_a_corpus_of_one_batch_starts_no_process(synthetic, tmp_path, monkeypatch):
    source, tokenizer = synthetic
    monkeypatch.setattr("mobilebert.data.corpus.ProcessPoolExecutor", None)
    assert prepare([*source.documents()][:60], tokenizer, tmp_path, workers=3)["documents_read"] == 60


def test_workers_end_with_a_parent_that_is_killed():
    """Workers also hold its standard output, which closes only when the last of them exits."""
    program = """
import os, signal
from multiprocessing import get_context
from concurrent.futures import ProcessPoolExecutor
from mobilebert.data import corpus
if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, get_context("spawn"), corpus._start_worker, (None,))
    list(pool.map(os.getenv, ["A", "B"]))
    print("started", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=False)
    assert found.stdout == b"started\n"


class Killed(Exception):
    pass


def test_a_killed_preparation_goes_on_where_it_was(synthetic, tmp_path, monkeypatch):
    """Another limit, share, order of calls or damaged file changes only what is tokenized again."""
    source, tokenizer = synthetic
    monkeypatch.setattr("mobilebert.data.corpus.BATCH_CHARACTERS", 5000)
    documents, made, bound = [*source.documents()][:60], [], [3]
    tokenize = corpus._Encoder._tokenize

    def counted(self, texts, digests):
        if len(made) == bound[0]:
            raise Killed
        made.append(len(texts))
        return tokenize(self, texts, digests)

    monkeypatch.setattr(corpus._Encoder, "_tokenize", counted)

    def run(name, documents=documents, **options):
        """Return the counts, the files, and how many documents were tokenized for them."""
        made.clear()
        counts = prepare(documents, tokenizer, tmp_path / name, cache=tmp_path / "cache", **options)
        return counts, [file.read_bytes() for file in sorted((tmp_path / name).iterdir())], sum(made)

    with pytest.raises(Killed):
        run("killed")
    before, bound[0] = sum(made), None
    assert not list((tmp_path / "killed").iterdir())
    counts, files, again = run("killed")
    assert again == 60 - before
    monkeypatch.setattr(corpus._Encoder, "_tokenize", tokenize)
    assert (prepare(documents, tokenizer, tmp_path / "fresh"), files) == (counts, run("killed")[1])
    assert files == [file.read_bytes() for file in sorted((tmp_path / "fresh").iterdir())]
    monkeypatch.setattr(corpus._Encoder, "_tokenize", counted)
    assert run("share", heldout_share=0.5)[2] == 0
    assert run("limit", documents[:40])[2] < 10, "the last batch alone"
    assert run("paragraphs", paragraphs=["another"])[2] == 60
    for number, file in enumerate((tmp_path / "cache").iterdir()):
        content = bytearray(file.read_bytes())
        content[content.index(b"\x93NUMPY") + 130] ^= 1  # in the counts, the first array: its header takes 128 bytes
        file.write_bytes(content if number % 2 else content[:-9])
    assert run("damaged") == (counts, files, 60)
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("module", corpus.MAKERS)
def test_a_change_of_the_code_empties_the_cache_and_a_comment_does_not(module, synthetic, tmp_path, monkeypatch):
    copy = shutil.copytree(PACKAGE / "data", tmp_path / "mobilebert/data").parent
    monkeypatch.setattr("mobilebert.study.code_hash.PACKAGE", copy)
    file = copy.parent / f"{module.replace('.', '/')}.py"

    def rules(added):
        file.write_text(file.read_text() + added)
        _read.cache_clear()
        return corpus._Encoder(synthetic[1], Paragraphs(()), None).rules

    before = rules("")
    assert rules("# a comment\n") == before
    assert rules("added = 1\n") != before
    _read.cache_clear()


def test_a_full_disk_is_a_one_line_error_and_keeps_earlier_files(tmp_path):
    """The kernel refuses to let a file grow, which is like a full disk in the middle of a file."""
    program = """
import resource, sys
from pathlib import Path
from mobilebert.data import corpus
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer
from mobilebert.util.errors import UserError
corpus.BATCH_CHARACTERS = 5000
folder, limit, documents = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
source = open_source("synthetic", documents=documents)
tokenizer = build_tokenizer(source, folder / "tokenizer", 400)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    corpus.prepare_corpus(source, tokenizer, folder / "out", heldout_share=0.1, squad_dev_paragraphs=(), cache=folder / "cache")
except UserError as error:
    print(error)
"""

    def run(limit, documents):
        words = [sys.executable, "-c", program, str(tmp_path), str(limit), str(documents)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert run(0, 200) == ""
    state = {file: file.read_bytes() for folder in ("out", "cache") for file in (tmp_path / folder).iterdir()}
    message = run(20_000, 600)
    assert re.fullmatch(r".*/out.*: File too large; run the same command again to continue from here\n", message)
    assert all(file.read_bytes() == content for file, content in state.items()), "the corpus of before is whole"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        file.name for file in state if file.parent.name == "out"
    )
    assert not list((tmp_path / "cache").glob("*.part"))
    assert run(0, 600) == ""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Compare the peaks of processes that prepare 20 MB and 2 MB of text from a file. malloc gives
    free memory back, so that the peak is memory in use."""
    program = """
import re, sys
from pathlib import Path
from mobilebert.data.corpus import prepare_corpus
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer
source = open_source("synthetic", documents=100)
tokenizer = build_tokenizer(source, Path(sys.argv[1]) / "tokenizer", None)
local = open_source(f"local:{sys.argv[1]}")
counts = prepare_corpus(local, tokenizer, Path(sys.argv[1]) / "out", heldout_share=0.1, squad_dev_paragraphs=())
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024, counts["tokens_train"])
"""
    lines = "\n\n".join(open_source("synthetic").documents())
    peaks, environment = [], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for megabytes in (2, 20):
        folder = tmp_path / str(megabytes)
        (folder / "corpus").mkdir(parents=True)
        text = "".join(f"{lines}\n{number}\n\n" for number in range(megabytes * 1_000_000 // len(lines)))
        (folder / "corpus/a.txt").write_text(text)
        (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  corpus/a.txt\n")
        words = [sys.executable, "-c", program, str(folder)]
        run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        peak, tokens = run.stdout.split()
        assert int(tokens) > megabytes * 100_000
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 9, "half of the text would not fit into this, nor would its tokens as a list"


def test_the_synthetic_corpus_repeats_some_development_paragraphs(synthetic, tmp_path):
    source, tokenizer = synthetic
    paragraphs = {c for t in ("squad_v1.1", "squad_v2.0") for c in source.table(t, "validation")["context"]}
    documents = list(source.documents())
    leaking = [document for document in documents if any(paragraph in document for paragraph in paragraphs)]
    assert 0.01 <= len(leaking) / len(paragraphs) <= 0.02
    counts = prepare(documents, tokenizer, tmp_path, paragraphs)
    assert counts["documents_dropped"] == len(leaking)


def test_unigram_entropy_of_a_uniform_distribution():
    assert unigram_entropy(np.full(8, 5), np.arange(8)) == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "0 documents read"),
        (["kepe voti .", "voti ."], {"heldout_share": 1e-9}, "0 for heldout"),
        (["kepe voti ."], {"heldout_share": 0.0}, "heldout_share is 0.0"),
        (["kepe voti ."], {"workers": 0}, "workers is 0"),
    ],
)
def test_user_errors_leave_no_files(synthetic, tmp_path, documents, options, message):
    with pytest.raises(UserError, match=message):
        prepare(documents, synthetic[1], tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_tokenizer_equals_transformers_in_both_directions(real_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    source = open_source(f"local:{real_data}", documents=10)
    tokenizer = build_tokenizer(source, tmp_path, None)
    assert tokenizer.get_vocab_size() == 30_522
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    reference = transformers.BertTokenizerFast(vocab=str(real_data / "vocab.txt"), do_lower_case=True)
    for document in source.documents():
        text = document[:2000]
        ids = tokenizer.encode(text, "Été 2020 — naïve [MASK]?")
        for other in (theirs, reference):
            pair = other(text, "Été 2020 — naïve [MASK]?")
            assert (pair["input_ids"], pair["token_type_ids"]) == (ids.ids, ids.type_ids)
    assert theirs.mask_token_id == tokenizer.token_to_id("[MASK]") == 103


@pytest.mark.parametrize("seed", [0, 5])
def test_the_corpus_is_split_as_is_heldout_says(synthetic, tmp_path, seed):
    documents = [*synthetic[0].documents()][:60]
    counts = prepare(documents, synthetic[1], tmp_path, seed=seed)
    assert counts["documents_heldout"] == sum(is_heldout(text, 0.3, seed) for text in documents)


def test_real_paragraphs_are_dropped(real_data, tmp_path):
    source = open_source(f"local:{real_data}")
    tokenizer = build_tokenizer(source, tmp_path / "tokenizer", None)
    unseen = source.table("squad_v1.1", "train")["context"].unique()[:100]
    paragraphs = source.table("squad_v1.1", "validation")["context"].unique()
    leaking = [f"An article.\n{paragraph.upper()}\nIts end." for paragraph in paragraphs[::400]]
    counts = prepare([*unseen, *leaking], tokenizer, tmp_path, paragraphs)
    assert counts["documents_read"] == 100 + len(leaking)
    assert counts["documents_dropped"] == len(leaking)
