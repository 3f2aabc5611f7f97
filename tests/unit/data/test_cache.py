"""Encoded rows on disk: equal to fresh ones, written once and whole, never of another text."""

import multiprocessing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mobilebert.data import cache, squad
from mobilebert.data.examples import encode, encode_squad
from mobilebert.study.stage_config import LengthsConfig

WORDS = [f"w{number}" for number in range(30)]
CUT = LengthsConfig(length=24, doc_stride=6, max_query_length=6)


def new_tokenizer(words=WORDS):
    vocab = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def pairs(label=1):
    texts = [" ".join(WORDS[start : start + 9]) for start in range(12)]
    return pd.DataFrame({"sentence1": texts, "sentence2": texts[::-1], "label": [label] * 12})


def questions(answer=20):
    context = " ".join(WORDS)
    answers = {"text": [WORDS[answer]], "answer_start": [context.index(f"{WORDS[answer]} ")]}
    return pd.DataFrame({"id": ["a", "b"], "question": ["w1 w2", "w3"], "context": [context] * 2, "answers": [answers] * 2})


def same(found, wanted):
    for mine, other in ((found.ids, wanted.ids), (found.types, wanted.types)):
        assert [row.tolist() for row in mine] == [row.tolist() for row in other]
    assert found.targets.keys() == wanted.targets.keys()
    for name, values in wanted.targets.items():
        assert values.dtype == found.targets[name].dtype
        assert values.tolist() == found.targets[name].tolist()
    first = [examples.batch(np.array([1, 0])) for examples in (found, wanted)]
    assert all(np.array_equal(first[0][name], first[1][name]) for name in first[1])


def kept(folder):
    return {path.name for path in folder.iterdir()}


def test_pairs_come_back_as_they_were_and_are_encoded_once(tmp_path, monkeypatch):
    fresh = encode(new_tokenizer(), "rte", pairs(), 16)
    with cache.kept_in(tmp_path):
        same(encode(new_tokenizer(), "rte", pairs(), 16), fresh)
        monkeypatch.setattr(cache, "_write", None)  # the second time nothing is written
        again = encode(new_tokenizer(), "rte", pairs(), 16)
    same(again, fresh)
    assert not again.ids[0].flags.writeable  # a view of the mapped file
    same(encode(new_tokenizer(), "rte", pairs(0), 16), encode(new_tokenizer(), "rte", pairs(0), 16))
    assert len(kept(tmp_path)) == 1


@pytest.mark.parametrize("training", [True, False])
def test_windows_come_back_as_they_were(tmp_path, training):
    wanted, windows = encode_squad(new_tokenizer(), questions(), CUT, training)
    for _ in range(2):
        with cache.kept_in(tmp_path):
            found, mine = encode_squad(new_tokenizer(), questions(), CUT, training)
        same(found, wanted)
        for name, array in vars(windows).items():
            other = vars(mine)[name]
            assert (array is None and other is None) or (array.dtype == other.dtype and np.array_equal(array, other)), name
    assert len(windows) > 2
    logits = np.random.default_rng(0).normal(size=(len(windows), 24)).astype(np.float32)
    assert squad.postprocess(mine, logits, logits, questions()) == squad.postprocess(windows, logits, logits, questions())


def test_every_input_of_the_encoding_changes_the_cache_key(tmp_path, monkeypatch):
    changed = pairs()
    changed.loc[0, "sentence2"] = "w1"
    swapped = pairs().rename(columns={"sentence1": "sentence2", "sentence2": "sentence1"})
    with cache.kept_in(tmp_path):
        for tokenizer, frame, length in (
            (new_tokenizer(), pairs(), 16),
            (new_tokenizer(), pairs(), 17),
            (new_tokenizer(WORDS[::-1]), pairs(), 16),
            (new_tokenizer(), changed, 16),
            (new_tokenizer(), swapped, 16),
        ):
            encode(tokenizer, "rte", frame, length)
        assert len(kept(tmp_path)) == 5
        encode(new_tokenizer(), "rte", pairs(0), 16)  # labels are not encoded
        assert len(kept(tmp_path)) == 5
        for changes in ({}, {"doc_stride": 5}, {"length": 22}, {"max_query_length": 1}):
            encode_squad(new_tokenizer(), questions(), CUT.model_copy(update=changes), True)
        encode_squad(new_tokenizer(), questions(21), CUT, True)  # another answer, other positions
        encode_squad(new_tokenizer(), questions(), CUT, False)
        assert len(kept(tmp_path)) == 11
        monkeypatch.setattr(cache, "syntax_hash", lambda *names: "another code")
        encode(new_tokenizer(), "rte", pairs(), 16)
        assert len(kept(tmp_path)) == 12


def test_a_killed_write_leaves_no_readable_entry(tmp_path, monkeypatch):
    def cut_short(stream, array, **options):
        stream.write(b"half")
        raise KeyboardInterrupt

    with cache.kept_in(tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(np, "save", cut_short)
            patch.setattr(cache.shutil, "rmtree", lambda *arguments, **options: None)  # SIGKILL cleans nothing up
            with pytest.raises(KeyboardInterrupt):
                encode(new_tokenizer(), "rte", pairs(), 16)
        assert all(name.endswith(".part") for name in kept(tmp_path))
        same(encode(new_tokenizer(), "rte", pairs(), 16), encode(new_tokenizer(), "rte", pairs(), 16))


@pytest.mark.parametrize(
    "break_it", [lambda file: file.write_bytes(file.read_bytes()[:-8]), Path.unlink, lambda file: file.write_bytes(b"")]
)
def test_a_broken_entry_is_made_again(tmp_path, break_it):
    with cache.kept_in(tmp_path):
        encode(new_tokenizer(), "rte", pairs(), 16)
        for file in sorted(tmp_path.rglob("*.npy")):
            break_it(file)
            same(encode(new_tokenizer(), "rte", pairs(), 16), encode(new_tokenizer(), "rte", pairs(), 16))
            assert file.is_file()
        assert len(kept(tmp_path)) == 1


def encode_together(folder, barrier, results):
    barrier.wait()
    with cache.kept_in(folder):
        results.put([row.tolist() for row in encode(new_tokenizer(), "rte", pairs(), 16).ids])


def test_processes_that_make_the_same_rows_at_once_all_get_them(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=encode_together, args=(tmp_path, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert found == [[row.tolist() for row in encode(new_tokenizer(), "rte", pairs(), 16).ids]] * 4
    assert len(kept(tmp_path)) == 1


def test_arrays_of_no_length_are_kept_too(tmp_path):
    for _ in range(2):
        with cache.kept_in(tmp_path):
            found = cache.arrays(lambda: {"none": np.zeros((0, 2), np.int32), "one": np.ones(1)}, "key")
    assert (found["none"].shape, found["none"].dtype, found["one"].tolist()) == ((0, 2), np.int32, [1.0])


def test_a_smaller_part_of_the_examples_is_a_subset_of_a_larger_one():
    examples = encode(new_tokenizer(), "rte", pairs(), 16)
    sizes = [{tuple(row) for row in examples.part(count).ids} for count in (2, 4, 8, 12)]
    assert [len(rows) for rows in sizes] == [2, 4, 8, 12]
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
