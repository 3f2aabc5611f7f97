"""Odd predictions, rows, vocabularies, sums and corpora: read as meant, or refused in one line."""

import errno
import gzip
import hashlib
import io
import json
import lzma
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outside import ROWS, one_line_of, table

from mobilebert.data import cache, documents, reading
from mobilebert.data.segment_pairs import Pairs
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer, vocab_hash
from mobilebert.evaluation import prediction_files
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

# --- predictions and a user's own rows


@pytest.fixture
def tables(tmp_path):
    for name in ("rte", "stsb", "squad_v2.0"):
        path = tmp_path / TASKS[name].folder / "validation.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table(TASKS[name]), path)
    return tmp_path


TSV = "idx\tprediction\n" + "".join(f"{row}\t0\n" for row in range(ROWS))
ANSWERS = json.dumps({f"q{row}": "b" for row in range(ROWS)})
GOOD_PREDICTIONS = {
    "byte order mark.tsv": "\ufeff" + TSV,
    "carriage returns.tsv": TSV.replace("\n", "\r\n"),
    "blank last lines.tsv": TSV + "\n\r\n\n",
    "no last line end.tsv": TSV[:-1],
    "byte order mark.json": "\ufeff" + ANSWERS,
}
BAD_PREDICTIONS = {
    "quotes.tsv": (TSV.replace("\n3\t", '\n"3"\t'), "row 3: column idx holds '\"3\"'; allowed: integers"),
    "underscore.tsv": (TSV.replace("\n3\t", "\n0_3\t"), "row 3: column idx holds '0_3'"),
    "other digits.tsv": (TSV.replace("\n3\t", "\n\u0663\t"), "row 3: column idx holds"),
    "long.tsv": (TSV.replace("\n3\t", f"\n{'3' * 5000}\t"), "row 3: column idx holds"),
    "twice.tsv": (TSV.replace("idx", "idx\tidx").replace("\t0", "\t0\t0"), "two columns of one name"),
    "utf-16.tsv": (TSV.encode("utf-16"), "line 1 is not UTF-8"),
    "latin.tsv": (TSV.encode() + b"caf\xe9\t0\n", "line 8 is not UTF-8"),
    "deep.json": ("[" * 100_000, "is not JSON (RecursionError"),
    "deep object.json": ('{"q0":' * 100_000, "is not JSON (RecursionError"),
    "long number.json": ('{"q0": ' + "9" * 5000 + "}", "is not JSON (ValueError"),
    "two lines.json": (json.dumps({"a\nb": "x"}), "lacks id q0"),
    "unknown two lines.json": (ANSWERS[:-1] + ', "a\\nb": "x"}', "holds unknown id 'a\\nb'"),
    "half a character.json": (ANSWERS.replace('"b"', '"\\ud800"', 1), "half of a surrogate pair"),
    "utf-16.json": (ANSWERS.encode("utf-16"), "line 1 is not UTF-8"),
    "lists.parquet": ({"id": [["q0"]] * ROWS, "prediction": ["b"] * ROWS}, "column id is of type list<element: string>"),
    "numbers.parquet": ({"id": [f"q{row}" for row in range(ROWS)], "prediction": range(ROWS)}, "prediction is of type int64"),
    "odds.parquet": (
        {"id": [f"q{row}" for row in range(ROWS)], "prediction": ["b"] * ROWS, "null_odds": ["x"] * ROWS},
        "column null_odds is of type string; allowed: numbers",
    ),
}


def written(path, content):
    if isinstance(content, dict):
        pq.write_table(pa.table({name: list(values) for name, values in content.items()}), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def scored(capsys, folder, path, task=None):
    task = task or ("rte" if path.name.endswith((".tsv", ".tsv.gz")) else "squad_v2.0")
    return one_line_of(capsys, path, ["score", "--task", task, "--data", folder, "--predictions", path])


@pytest.mark.parametrize("name", GOOD_PREDICTIONS)
def test_predictions_in_an_odd_but_clear_form_are_scored(name, tables, capsys):
    assert scored(capsys, tables, written(tables / name, GOOD_PREDICTIONS[name])) is None


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_predictions_in_another_form_are_refused_with_the_place(name, tables, capsys):
    content, message = BAD_PREDICTIONS[name]
    assert message in scored(capsys, tables, written(tables / name, content))


@pytest.mark.parametrize("values", [[True, False] * 3, [[0]] * 6, [b"0"] * 6, [{"a": 0}] * 6])
@pytest.mark.parametrize("column", ["idx", "prediction"])
@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_prediction_columns_of_another_type_are_refused(task, column, values, tables, capsys):
    columns = {"idx": range(ROWS), "prediction": [0] * ROWS, column: values}
    line = scored(capsys, tables, written(tables / "p.parquet", columns), task)
    assert f"column {column} is of type" in line


def test_large_files_of_predictions_are_refused_before_they_are_parsed(tables, capsys, monkeypatch):
    monkeypatch.setattr(prediction_files, "LARGEST_PREDICTIONS", 2**20)
    blank = b" " * 2**20
    for name, content in (
        ("p.json.gz", gzip.compress(blank + ANSWERS.encode())),
        ("p.tsv.gz", gzip.compress(TSV.encode() + blank)),
    ):
        assert "holds more than 1 MiB of text" in scored(capsys, tables, written(tables / name, content))
    repeated = {"id": ["q0" * 500] * 2000, "prediction": ["b"] * 2000}
    path = written(tables / "p.parquet", repeated)
    assert path.stat().st_size < 2**16
    assert "holds more than 1 MiB in id, prediction" in scored(capsys, tables, path)


OWN_ROWS = {
    "deep.jsonl": ('{"sentence": "a"}\n' + "[" * 100_000, "row 1 is not JSON (RecursionError"),
    "latin.jsonl": (b'{"sentence": "a"}\n{"sentence": "caf\xe9"}\n', "line 2 is not UTF-8"),
    "list.jsonl": ('{"sentence": "a"}\n[]\n', "row 1: every line must be a JSON object"),
    "bytes.parquet": ({"sentence": [b"a"]}, "column sentence is of type binary"),
    "lists.parquet": ({"sentence": ["a"], "idx": [[1]]}, "column idx is of type list<element: int64>"),
}


@pytest.mark.parametrize("name", OWN_ROWS)
def test_own_rows_in_another_form_are_refused_with_the_place(name, tmp_path, capsys):
    content, message = OWN_ROWS[name]
    path = written(tmp_path / name, content)
    assert message in one_line_of(capsys, path, ["predict", "/nowhere/model", "--task", "sst2", "--input", path])


def test_a_line_of_own_rows_ends_at_a_line_feed_alone(tmp_path, capsys):
    path = written(tmp_path / "rows.jsonl", '{"sentence": "a\u2028\x85b"}\r\n{"sentence": "c"}\n')
    assert "/nowhere/model" in one_line_of(capsys, path, ["predict", "/nowhere/model", "--task", "sst2", "--input", path])


# --- vocabulary, sums, corpus


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = ["\u2028", "\x85", "a\x1cb", "\x0b", "\u2029", "c\x0cd", "\x1e", "e"]


class Folder:
    """A source that has a vocabulary alone."""

    spec = "folder"

    def __init__(self, path):
        self.path = path

    def vocab(self):
        return self.path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_a_vocabulary_ends_at_a_line_feed_alone(end, tmp_path):
    path = written(tmp_path / "vocab.txt", "".join(token + end for token in SPECIAL + ODD))
    tokenizer = build_tokenizer(Folder(path), tmp_path / "out", None)
    assert [tokenizer.id_to_token(number) for number in range(len(SPECIAL + ODD))] == SPECIAL + ODD
    assert (tmp_path / "out/vocab.txt").read_bytes() == "".join(f"{token}\n" for token in SPECIAL + ODD).encode()
    plain = "\n".join([*SPECIAL, "a", "##b"])
    assert vocab_hash(plain) == vocab_hash(plain.replace("\n", end) + end) == hashlib.sha256(f"{plain}\n".encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\ufeff" + "\n".join(SPECIAL), "begins with a byte order mark"),
        ("\n".join([*SPECIAL, "", "a", ""]) + "\n", "line 8 repeats the token '' of line 6"),
        ("\n".join([*SPECIAL, "a", "a"]), "line 7 repeats the token 'a' of line 6"),
        ("\n".join(SPECIAL[1:]), r"no token \[PAD\]"),
        ("", r"no token \[PAD\], "),
        (b"[PAD]\n\xff\n", "line 2 is not UTF-8"),
    ],
)
def test_an_invalid_vocabulary_is_refused(content, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        build_tokenizer(Folder(written(tmp_path / "vocab.txt", content)), tmp_path / "out", None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


ZEROS, ONES = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{ZEROS}  corpus/../../secret.txt\n", "line 1 names corpus/../../secret.txt, which is outside of the folder"),
        (f"{ZEROS}  a.txt\n{ONES}  /etc/passwd\n", "line 2 names /etc/passwd, which is outside of the folder"),
        (f"{ZEROS}  ../a.txt\n", "line 1 names ../a.txt"),
        (f"{ZEROS}  a.txt\n{ONES} *./a.txt\n", r"line 2 has another hash of ./a.txt than a line before it"),
        (f"{ZEROS}  a.txt\nnonsense\n", "line 2 is not 64 hexadecimal digits and a file, as sha256sum writes it: nonsense"),
        (f"{ZEROS[:-1]}g  a.txt\n", "line 1 is not 64 hexadecimal"),
        (f"{ZEROS}  \n", "line 1 is not 64 hexadecimal"),
        (f"SHA256 (a.txt) = {ZEROS}\n", "line 1 is not 64 hexadecimal"),
        (b"\xff\xfe\n", "line 1 is not UTF-8"),
    ],
)
def test_invalid_checksum_files_are_refused(content, message, tmp_path):
    written(tmp_path / "SHA256SUMS", content)
    with pytest.raises(UserError, match=message) as error:
        open_source(f"local:{tmp_path}")
    assert str(error.value).startswith(str(tmp_path / "SHA256SUMS"))


def test_checksum_files_of_other_systems_are_read(tmp_path):
    written(tmp_path / "SHA256SUMS", f"{'A' * 64} *./corpus//a\u2028b.txt\r\n\r\n{ONES}  vocab.txt\r\n{ONES}  vocab.txt")
    assert open_source(f"local:{tmp_path}").pinned == {"corpus/a\u2028b.txt": "a" * 64, "vocab.txt": ONES}


def corpus(folder, **contents):
    (folder / "corpus").mkdir()
    paths = [written(folder / "corpus" / name.replace("_", "."), content) for name, content in contents.items()]
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  corpus/{path.name}\n" for path in paths)
    written(folder / "SHA256SUMS", sums)
    return f"local:{folder}"


@pytest.mark.parametrize("name", ["a_txt", "a_jsonl", "a_txt_gz", "a_parquet"])
def test_a_corpus_file_without_a_document_is_refused(name, tmp_path):
    empty = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
    content = {"a_txt": "\n \n", "a_jsonl": "", "a_txt_gz": gzip.compress(b""), "a_parquet": empty.getvalue()}[name]
    source = open_source(corpus(tmp_path, **{name: content, "b_txt": "one\n"}))
    with pytest.raises(UserError, match="holds no document"):
        list(source.documents())


def test_asking_for_more_documents_than_exist_gives_all(tmp_path):
    assert list(open_source(corpus(tmp_path, a_txt="one\n\ntwo\n"), documents=9).documents()) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.xz", lzma.compress(b"one\n" + b"a" * 2**20), "line 2 is longer than"),
        ("a.txt.gz", gzip.compress(b"one\n" + b"a" * 2**20), "line 2 is longer than"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "' + b"a" * 2**20), "line 1 is longer than"),
        (
            "a.txt.gz",
            gzip.compress(b"one\n\n" + b"a line\n" * 2**17),
            "the document that begins in line 3 is longer than .*blank lines",
        ),
        ("a.parquet", {"text": ["one", "a" * 2**20]}, "row 2 is longer than"),
        ("b.parquet", {"text": pa.array([b"one", b"\xff"]).cast(pa.binary()).to_pylist()}, "column text is of type binary"),
    ],
)
def test_a_document_longer_than_the_bound_is_refused(name, content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST_DOCUMENT", 2**18)
    with pytest.raises(UserError, match=message):
        list(documents.read_documents(written(tmp_path / name, content)))


def test_a_long_line_is_read_only_up_to_the_bound(tmp_path, monkeypatch):
    """The file of 10 KB holds 64 MiB; the bound must apply during decompression, not after it."""
    monkeypatch.setattr(documents, "LARGEST_DOCUMENT", 2**20)
    compressor = lzma.LZMACompressor(preset=0)
    parts = [compressor.compress(bytes(2**20)) for _ in range(64)]
    path = written(tmp_path / "a.txt.xz", b"".join([*parts, compressor.flush()]))
    tracemalloc.start()
    with pytest.raises(UserError, match="line 1 is longer than 1 MiB"):
        list(documents.read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_text_of_a_corpus_that_is_not_utf8_is_named_by_its_row(tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"one", b"\xff"]).buffers())
    pq.write_table(pa.table({"text": wrong}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 2 is not UTF-8"):
        list(documents.read_documents(tmp_path / "a.parquet"))
    for text in (["one", "two"], ["one", "one"]):
        column = pa.array(text).dictionary_encode() if text[0] == text[1] else pa.array(text, pa.large_string())
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert [document for document, _ in documents.read_documents(tmp_path / "a.parquet")] == text


# --- a full disk


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with cache.kept_in(tmp_path), pytest.raises(OSError, match=r"No space left on device: .*ids\.npy"):
            cache.arrays(lambda: {"ids": np.zeros(3)}, "a")
    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"), reading.writing(tmp_path / "a.txt"):
        full()
    assert not list(tmp_path.iterdir())


def test_a_token_file_that_was_cut_short_is_named(tmp_path):
    for name in ("tokens", "sentences", "documents"):
        np.save(tmp_path / f"train.{name}.npy", np.zeros(100, np.int64))
    path = tmp_path / "train.sentences.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train\.sentences\.npy: not a whole token file"):
        Pairs(tmp_path, "train", length=16, tokenizer=None, seed=0)
