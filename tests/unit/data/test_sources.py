import hashlib
import lzma
import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from mobilebert.data.source import OFFICIAL_ROWS
from mobilebert.data.sources import HubSource, interleave, open_source
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError


def cola(rows):
    return pd.DataFrame({"sentence": [f"row {n}" for n in range(rows)], "label": [n % 2 for n in range(rows)]}).assign(
        idx=range(rows)
    )


def qqp(rows):
    questions = {"question1": [f"what {n}" for n in range(rows)], "question2": [f"who {n}" for n in range(rows)]}
    return pd.DataFrame({**questions, "label": [n % 2 for n in range(rows)], "idx": range(rows)})


SQUAD = pd.DataFrame(
    {
        "id": ["1"],
        "title": ["t"],
        "context": ["a b c"],
        "question": ["q"],
        "answers": [{"text": ["b", "b c"], "answer_start": [2, 2]}],
    }
)


@pytest.fixture
def folder(tmp_path):
    tables = {"glue/cola/train": cola(8551), "glue/cola/test": cola(10), "glue/qqp/validation": qqp(20)}
    for name, table in {**tables, "squad/v1.1/validation": SQUAD}.items():
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a-00.txt.xz").write_bytes(lzma.compress("one\ntwo\n\n\nthree é\n".encode()))
    (tmp_path / "corpus" / "b-00.txt").write_text("\nfour\n \nfive\n\n")
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    pin(tmp_path)
    return tmp_path


def pin(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files)
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_local_documents(folder):
    source = open_source(f"local:{folder}")
    assert sorted(source.documents()) == ["five", "four", "one\ntwo", "three é"]
    assert list(source.documents()) == list(source.documents())
    assert len(list(open_source(f"local:{folder}", documents=3).documents())) == 3
    for name, digest in source.files("corpus").items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert sorted(source.files("corpus")) == ["corpus/a-00.txt.xz", "corpus/b-00.txt"]


def test_local_tables(folder):
    source = open_source(f"local:{folder}")
    assert source.splits("cola") == ["train", "test"]
    assert source.splits("rte") == []
    pd.testing.assert_frame_equal(source.table("cola", "train"), cola(8551), check_dtype=False)
    assert source.table("squad_v1.1", "validation")["answers"][0] == {"text": ["b", "b c"], "answer_start": [2, 2]}
    assert sorted(source.files("cola")) == ["glue/cola/test.parquet", "glue/cola/train.parquet"]
    assert source.vocab() == folder / "vocab.txt"


def test_labels_tell_which_splits_are_not_the_official_ones(folder):
    source = open_source(f"local:{folder}")
    assert source.label("cola", "train") is None
    assert source.label("cola", "test") == "10 of 1,063 test rows"
    assert source.label("qqp", "validation") == "20 held-out train rows"
    assert source.label("squad_v1.1", "validation") == "1 of 10,570 validation rows"


def test_a_changed_file_is_refused_with_both_hashes(folder):
    source = open_source(f"local:{folder}")
    pinned = source.files("cola")["glue/cola/train.parquet"]
    cola(5).to_parquet(folder / "glue/cola/train.parquet")
    (folder / "corpus" / "b-00.txt").write_text("other\n")
    found = hashlib.sha256((folder / "glue/cola/train.parquet").read_bytes()).hexdigest()
    source = open_source(f"local:{folder}")
    with pytest.raises(UserError) as error:
        source.table("cola", "train")
    assert all(part in str(error.value) for part in ("glue/cola/train.parquet", pinned, found))
    with pytest.raises(UserError, match=r"b-00\.txt: sha256 is"):
        source.documents()


@pytest.mark.parametrize(
    ("remove", "read", "message"),
    [
        ("SHA256SUMS", lambda source: None, r"SHA256SUMS: missing"),
        ("vocab.txt", lambda source: source.vocab(), r"vocab\.txt: missing"),
        ("corpus/b-00.txt", lambda source: source.documents(), r"b-00\.txt: missing"),
        ("glue/cola/train.parquet", lambda source: source.label("cola", "train"), r"train\.parquet: missing"),
        ("vocab.txt", lambda source: source.table("cola", "validation"), r"no split validation; there: train, test"),
        ("vocab.txt", lambda source: source.table("mnist", "train"), r"task 'mnist': must be one of cola"),
    ],
)
def test_missing_files_are_named_in_one_line(folder, remove, read, message):
    (folder / remove).unlink()
    with pytest.raises(UserError, match=message) as error:
        read(open_source(f"local:{folder}"))
    assert "\n" not in str(error.value)


def test_unlisted_unreadable_and_malformed_tables_are_refused(folder):
    (folder / "corpus" / "c.txt").write_text("new\n")
    with pytest.raises(UserError, match=r"c\.txt: not listed"):
        open_source(f"local:{folder}").documents()
    (folder / "glue/cola/train.parquet").write_text("not parquet")
    cola(10).drop(columns="label").to_parquet(folder / "glue/cola/test.parquet")
    pin(folder)
    source = open_source(f"local:{folder}")
    with pytest.raises(UserError, match=r"train\.parquet: not a readable parquet file"):
        source.table("cola", "train")
    with pytest.raises(UserError, match=r"test\.parquet: .*label"):
        source.table("cola", "test")


@pytest.mark.parametrize("spec", ["", "local", "local:", "hub:x", "synthetic:1", "/data"])
def test_unknown_specs(spec):
    with pytest.raises(UserError, match=r"synthetic, local:<folder> or hub"):
        open_source(spec)


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source(f"local:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="documents is 0"):
        open_source("synthetic", documents=0)


def test_interleaving_keeps_to_the_weights():
    books, articles = ["b" * 1000] * 50, ["a" * 10] * 20_000
    mixed = list(interleave([(articles, 3.0), (books, 1.0)]))
    assert sorted(mixed) == sorted(articles + books)
    characters = "".join(mixed[:5000])
    assert characters.count("a") / characters.count("b") == pytest.approx(3, rel=0.15)
    assert list(interleave([])) == []


def test_the_hub_without_a_network_fails_in_one_line_and_does_not_hang(tmp_path):
    """In its own process: the hub's libraries read the offline switch once, at import."""
    pytest.importorskip("datasets")
    program = """
from mobilebert.data.sources import open_source
from mobilebert.util.errors import UserError
source = open_source("hub")
for read in (lambda: source.table("cola", "train"), lambda: next(source.documents()), source.vocab,
             lambda: source.files("squad_v2.0")):
    try:
        read()
        print("no error")
    except UserError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    names = ["nyu-mll/glue/cola/train", "wikimedia/wikipedia", "google/mobilebert-uncased", "rajpurkar/squad_v2"]
    assert len(lines) == len(names)
    for line, name in zip(lines, names):
        assert name in line
        assert "local:<folder> and synthetic work offline" in line
    assert time.monotonic() - began < 30


def test_the_hub_gives_what_the_data_set_library_gives(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(repository, configuration, split, streaming=False):
        asked.append((repository, configuration, split))
        if streaming:
            return [{"text": f"{repository} {number}"} for number in range(5)]
        return datasets.Dataset.from_pandas(SQUAD if "squad" in repository else cola(OFFICIAL_ROWS["cola"][split]))

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HubSource(documents=4)
    assert source.table("squad_v1.1", "validation")["answers"][0] == SQUAD["answers"][0]
    assert source.label("cola", "validation") is None
    assert source.label("squad_v1.1", "train") == "1 of 87,599 train rows"
    assert len(set(source.files("cola").values())) == 3
    documents = list(source.documents())
    assert len(documents) == 4
    assert len({document.split()[0] for document in documents}) == 2
    assert ("nyu-mll/glue", "cola", "validation") in asked
    assert ("rajpurkar/squad", None, "train") in asked


def test_rows_and_labels_of_the_real_folder(real_data):
    source = open_source(f"local:{real_data}")
    for task in ("stsb", "ax", "squad_v2.0"):
        for split in source.splits(task):
            assert len(source.table(task, split)) == source.rows(task, split)
    labels = {(task, split): source.label(task, split) for task in TASKS for split in source.splits(task)}
    assert {key: label for key, label in labels.items() if label} == {
        ("qqp", "train"): "28,744 of 363,846 train rows",
        ("qqp", "validation"): "4,125 held-out train rows",
        ("mnli", "train"): "19,636 of 392,702 train rows",
        ("mnli", "validation_matched"): "6,238 of 9,815 matched rows",
        ("qnli", "train"): "9,999 of 104,743 train rows",
        ("squad_v1.1", "train"): "11,923 of 87,599 train rows",
        ("squad_v2.0", "train"): "12,270 of 130,319 train rows",
    }
    assert all(len(document) > 100 for document in open_source(f"local:{real_data}", documents=10).documents())
