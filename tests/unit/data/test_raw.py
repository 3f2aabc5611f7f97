"""The benchmarks' own files give the rows of parquet files.

These have the columns of the Hugging Face data sets.
"""

import hashlib
import json

import pandas as pd
import pytest

from mobilebert.cli.main import main
from mobilebert.data.sources import open_source
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

# Texts as in these files: quotes that do not close, a space at the end, characters at which
# str.splitlines splits.
ONE = ['He said "go', "it's \x85 one\u2028two ", '"quoted"']
TWO = ["they went", 'to "A', "\ufeffé 東"]

# Task -> folder, header of the labelled files (None: no header), a line of them, header and line of
# the test file. `a` and `b` stand for the texts, `l` for the label, `n` for the row's number.
FORMATS = {
    "cola": ("CoLA", None, ["gj04", "{l}", "*", "{a}"], ["index", "sentence"], ["{n}", "{a}"]),
    "sst2": ("SST-2", ["sentence", "label"], ["{a}", "{l}"], ["index", "sentence"], ["{n}", "{a}"]),
    "mrpc": (
        "MRPC",
        ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        ["{l}", "702876", "702977", "{a}", "{b}"],
        ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        ["{n}", "1089874", "1089925", "{a}", "{b}"],
    ),
    "stsb": (
        "STS-B",
        ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"],
        ["{n}", "main-captions", "MSRvid", "2012test", "0001", "none", "none", "{a}", "{b}", "{l}"],
        ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"],
        ["{n}", "main-captions", "MSRvid", "2012test", "0001", "none", "none", "{a}", "{b}"],
    ),
    "qqp": (
        "QQP",
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ["133273", "213221", "213222", "{a}", "{b}", "{l}"],
        ["id", "question1", "question2"],
        ["{n}", "{a}", "{b}"],
    ),
    "mnli": (
        "MNLI",
        ["index", "promptID", "pairID", "genre", "sentence1_parse", "sentence1", "sentence2", "label1", "gold_label"],
        ["{n}", "31193", "31193n", "government", "( ( a", "{a}", "{b}", "neutral", "{l}"],
        ["index", "promptID", "pairID", "genre", "sentence1_parse", "sentence1", "sentence2"],
        ["{n}", "31193", "31193n", "travel", "( ( a", "{a}", "{b}"],
    ),
    "qnli": (
        "QNLI",
        ["index", "question", "sentence", "label"],
        ["{n}", "{a}", "{b}", "{l}"],
        ["index", "question", "sentence"],
        ["{n}", "{a}", "{b}"],
    ),
    **{
        name: (
            name.upper(),
            ["index", "sentence1", "sentence2", "label"],
            ["{n}", "{a}", "{b}", "{l}"],
            ["index", "sentence1", "sentence2"],
            ["{n}", "{a}", "{b}"],
        )
        for name in ("rte", "wnli")
    },
    "ax": ("AX", None, None, ["index", "sentence1", "sentence2"], ["{n}", "{a}", "{b}"]),
}
FILES = {
    "train": "train",
    "validation": "dev",
    "test": "test",
    "validation_matched": "dev_matched",
    "validation_mismatched": "dev_mismatched",
    "test_matched": "test_matched",
    "test_mismatched": "test_mismatched",
}
NAMES = {"mnli": ("entailment", "neutral", "contradiction")} | dict.fromkeys(("qnli", "rte"), ("entailment", "not_entailment"))


def labels(name):
    """Return the labels of three rows as the file writes them, and as the hub has them."""
    if name == "stsb":
        return ["5.000", "0.25", "3"], [5.0, 0.25, 3.0]
    if name in NAMES:
        codes = [0, len(NAMES[name]) - 1, 1]
        return [NAMES[name][code] for code in codes], codes
    return ["0", "1", "1"], [0, 1, 1]


def tsv(name, split, end="\n"):
    """Return the file of a split in the download's format, and the hub's table of it."""
    _, header, line, test_header, test_line = FORMATS[name]
    written, codes = labels(name)
    if split.startswith("test"):
        header, line, codes = test_header, test_line, [type(codes[0])(-1)] * 3
    lines = [header] if header else []
    for number, (a, b, label) in enumerate(zip(ONE, TWO, written)):
        lines.append([field.format(n=number, a=a, b=b, l=label) for field in line])
    texts = dict(zip(TASKS[name].text_columns, (ONE, TWO)))
    return "".join("\t".join(fields) + end for fields in lines), pd.DataFrame({**texts, "label": codes, "idx": range(3)})


def pin(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files)
    (folder / "SHA256SUMS").write_text("".join(sums))
    return open_source(f"local:{folder}")


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FORMATS)
def test_glue_files_of_the_download_equal_the_parquet_form(name, end, tmp_path):
    for split in TASKS[name].splits.values():
        content, table = tsv(name, split, end)
        put(tmp_path / "raw/glue" / FORMATS[name][0] / f"{FILES[split]}.tsv", content)
        file = tmp_path / "hub/glue" / name / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(file)
    raw, hub = pin(tmp_path / "raw"), pin(tmp_path / "hub")
    assert raw.splits(name) == hub.splits(name) == list(TASKS[name].splits.values())
    for split in raw.splits(name):
        pd.testing.assert_frame_equal(raw.table(name, split), hub.table(name, split))
        assert raw.rows(name, split) == 3
    assert set(raw.files(name)) == {f"glue/{FORMATS[name][0]}/{FILES[split]}.tsv" for split in raw.splits(name)}


def test_the_diagnostic_set_lies_in_its_own_folder(tmp_path):
    content, table = tsv("ax", "test")
    put(tmp_path / "glue/diagnostic/diagnostic.tsv", content)
    pd.testing.assert_frame_equal(pin(tmp_path).table("ax", "test"), table, check_dtype=False)


def test_rows_without_a_gold_label_and_torn_questions_are_left_out_as_on_the_hub(tmp_path):
    """The rows that are kept keep their numbers."""
    content, table = tsv("mnli", "validation_matched")
    put(tmp_path / "glue/MNLI/dev_matched.tsv", content.replace("\tcontradiction\n", "\t-\n"))
    content, questions = tsv("qqp", "train")
    head, first, second, third, _ = content.split("\n")
    torn = "363362\t492109\t492110\tHow much money\nwould I need\t0"
    put(tmp_path / "glue/QQP/train.tsv", "\n".join([head, first, torn, second, third, ""]))
    source = pin(tmp_path)
    pd.testing.assert_frame_equal(
        source.table("mnli", "validation_matched"), table.drop(index=1).reset_index(drop=True), check_dtype=False
    )
    questions["idx"] = [0, 3, 4]
    pd.testing.assert_frame_equal(source.table("qqp", "train"), questions, check_dtype=False)


def article(version):
    answers = {"q1": [{"text": "cat", "answer_start": 4}, {"text": "the cat", "answer_start": 0}]}
    questions = [{"id": key, "question": f"{key}?", "answers": answers.get(key, [])} for key in ("q1", "q2")]
    if version == "1.1":
        questions = questions[:1]
    else:
        questions[0] |= {"is_impossible": False}
        questions[1] |= {"is_impossible": True, "plausible_answers": [{"text": "sat", "answer_start": 8}]}
    return {"version": version, "data": [{"title": "T", "paragraphs": [{"context": "the cat sat", "qas": questions}]}]}


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_files_equal_the_parquet_form(version, tmp_path):
    name = f"squad_v{version}"
    rows = [{"text": ["cat", "the cat"], "answer_start": [4, 0]}, {"text": [], "answer_start": []}]
    table = pd.DataFrame(
        {"id": ["q1", "q2"], "title": "T", "context": "the cat sat", "question": ["q1?", "q2?"], "answers": rows}
    )
    table = table.iloc[: 1 if version == "1.1" else 2]
    for split, stem in (("train", "train"), ("validation", "dev")):
        put(tmp_path / f"raw/squad/{stem}-v{version}.json", json.dumps(article(version)))
        file = tmp_path / f"hub/squad/v{version}/{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(file)
    raw, hub = pin(tmp_path / "raw"), pin(tmp_path / "hub")
    assert raw.splits(name) == hub.splits(name) == ["train", "validation"]
    for split in raw.splits(name):
        pd.testing.assert_frame_equal(raw.table(name, split), hub.table(name, split))


def test_score_reads_a_folder_and_a_file_of_the_download(tmp_path, capsys):
    """A single file needs no hash if there is no SHA256SUMS."""
    for stem in ("dev_matched", "dev_mismatched"):
        content, _ = tsv("mnli", f"validation{stem[3:]}")
        file = put(tmp_path / f"glue/MNLI/{stem}.tsv", content)
    table = pd.concat(
        pd.DataFrame({"split": split, "idx": range(3), "prediction": 0}) for split in ("validation", "validation_mismatched")
    )
    table.to_parquet(tmp_path / "p.parquet")
    given = ["score", "--task", "mnli", "--predictions", str(tmp_path / "p.parquet"), "--data"]
    assert main([*given, str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"validation": 3, "validation_mismatched": 3}
    assert main([*given, str(file), "--split", "validation_mismatched"]) == 0
    assert json.loads(capsys.readouterr().out)["mismatched_accuracy"] == pytest.approx(100 / 3)
    squad = put(tmp_path / "dev.json", json.dumps(article("2.0")))
    put(tmp_path / "p.json", json.dumps({"q1": "cat", "q2": ""}))
    assert main(["score", "--task", "squad_v2.0", "--predictions", str(tmp_path / "p.json"), "--data", str(squad)]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == 100


RTE = tsv("rte", "train")[0]
SQUAD = json.dumps(article("1.1"))


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("rte", "", "is empty"),
        ("rte", "\n\n", "is empty"),
        ("rte", RTE.split("\n")[0], "the train split of rte is empty"),
        ("rte", RTE.replace("sentence2", "other"), "no column sentence2; rte needs sentence1, sentence2, label"),
        ("rte", RTE.replace("index", "label"), "two columns are called label"),
        ("rte", RTE.replace("they went", "they\twent"), "line 2 has 5 fields, a line of rte has 4"),
        ("rte", RTE.replace("\tnot_entailment", "\tno", 1), "line 3: label no of rte; allowed: entailment, not_entailment or"),
        ("rte", RTE.replace("\tnot_entailment", "\t2", 1), "labels of rte are out of range, first 2 at idx 1"),
        ("rte", tsv("rte", "test")[0], "labels of rte are out of range, first -1"),
        ("stsb", tsv("stsb", "train")[0].replace("0.25", "nan"), "line 3: label nan of stsb; allowed: numbers"),
        ("stsb", tsv("stsb", "train")[0].replace("0.25", "5.25"), "labels of stsb are out of range, first 5.25"),
        ("rte", RTE.encode("utf-16"), "line 1 is not UTF-8"),
        ("rte", RTE.encode().replace(b"they went", b"caf\xe9"), "line 2 is not UTF-8"),
        ("squad_v1.1", "[" * 100_000, "is not JSON .RecursionError"),
        ("squad_v1.1", SQUAD[:-9], "is not JSON"),
        ("squad_v1.1", "[]", "has no list data"),
        ("squad_v1.1", '{"data": [{"title": "t"}]}', r"data\[0\] has no list paragraphs"),
        ("squad_v1.1", SQUAD.replace('"answers"', '"a"'), r"data\[0\].paragraphs\[0\].qas\[0\] has no list answers"),
        (
            "squad_v1.1",
            SQUAD.replace('"answer_start": 4', '"answer_start": 4.0'),
            "row 0: answers of id q1 hold the answer_start 4.0",
        ),
        ("squad_v1.1", SQUAD.replace('"answer_start": 4', '"answer_start": null'), "hold the answer_start None"),
        ("squad_v1.1", SQUAD.replace('"text": "cat"', '"text": 3'), "hold a text that is not a string"),
        ("squad_v1.1", SQUAD.replace('"q1?"', "null"), "column question holds 1 values that are not text, first in row 0"),
        ("squad_v1.1", SQUAD.replace('"q1?"', '"\\ud800"'), "half of a surrogate pair"),
        ("squad_v1.1", SQUAD.replace('"id": "q1"', '"id": ["q1"]'), "column id holds 1 values that are not text"),
    ],
)
def test_files_in_another_form_are_refused_with_the_place(task, content, message, tmp_path):
    file = "squad/train-v1.1.json" if TASKS[task].is_squad else f"glue/{FORMATS[task][0]}/train.tsv"
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        pin(tmp_path).table(task, "train")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
