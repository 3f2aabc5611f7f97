"""`mobilebert predict` of a user's rows, against single rows."""

import json
import shutil

import pandas as pd
import pytest
import torch
from scored_models import logits_of, run
from tokenizers import Tokenizer

from mobilebert.study.tasks import TASKS


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_predict_reads_a_users_file_and_writes_every_format(ending, data, checkpoints, tmp_path, capsys):
    frame = pd.read_parquet(data / "glue/mnli/validation_matched.parquet")
    logits = logits_of(checkpoints["mobilebert-3"], "mobilebert-3", frame, ("premise", "hypothesis"))
    source, rows = tmp_path / f"rows.{ending}", frame[["premise", "hypothesis", "idx"]]
    if ending == "tsv":
        rows.to_csv(source, sep="\t", index=False)
    elif ending == "jsonl":
        rows.to_json(source, orient="records", lines=True)
    else:
        rows.to_parquet(source)
    given = ("predict", checkpoints["mobilebert-3"], "--task", "mnli", "--input", source)
    printed = [json.loads(line) for line in run(capsys, *given).splitlines()]
    assert [row["prediction"] for row in printed] == logits.argmax(1).tolist()
    shares = torch.softmax(torch.tensor(logits), 1).numpy()
    assert [row["probability_neutral"] for row in printed] == pytest.approx(shares[:, 1].tolist(), abs=1e-4)
    for name in ("o.tsv", "o.parquet", "o.jsonl"):
        assert run(capsys, *given, "--output", tmp_path / name) == ""
    names = [TASKS["mnli"].labels[code] for code in logits.argmax(1)]
    expected = ["index\tprediction", *[f"{idx}\t{name}" for idx, name in zip(frame["idx"], names)]]
    assert (tmp_path / "o.tsv").read_text().splitlines() == expected
    assert pd.read_parquet(tmp_path / "o.parquet")["label"].tolist() == names
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [
        row | {"idx": json.loads(json.dumps(row["idx"]))} for row in printed
    ]


def test_every_line_of_a_tsv_is_a_row_whatever_its_line_end(checkpoints, tmp_path, capsys):
    """One text is empty, one has a lone carriage return, one a quote: each is one row."""
    texts = ["red cat", "", "on\rmat", '"blue']
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    given = ("predict", checkpoints["mobilebert-2"], "--task", "sst2", "--input")
    expected = run(capsys, *given, tmp_path / "rows.jsonl")
    assert len(expected.splitlines()) == 4
    for end in ("\n", "\r\n"):
        for mark in ("", "\ufeff"):
            (tmp_path / "rows.tsv").write_bytes((mark + end.join(["sentence", *texts, "", ""])).encode())
            assert run(capsys, *given, tmp_path / "rows.tsv") == expected


def test_predict_one_question(checkpoints, capsys):
    context = "red cat sat on blue mat ."
    given = ("predict", checkpoints["mobilebert-qa"], "--question", "who ?", "--context", context, "--task")
    first = json.loads(run(capsys, *given, "squad_v1.1"))
    assert first["prediction"] in context
    assert first["id"] == "0"
    second = json.loads(run(capsys, *given, "squad_v2.0"))
    assert second["prediction"] == first["prediction"]
    assert second["answer"] == ("" if second["null_odds"] > 0 else second["prediction"])


def test_the_lengths_in_a_tokenizer_file_do_not_matter(checkpoints, tmp_path, capsys):
    context = " ".join(["red cat sat on blue mat ."] * 5)
    given = ("--question", "who ?", "--context", context, "--task", "squad_v1.1")
    before = run(capsys, "predict", checkpoints["mobilebert-qa"], *given)
    shutil.copytree(checkpoints["mobilebert-qa"], tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model/tokenizer.json"))
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    assert run(capsys, "predict", tmp_path / "model", *given) == before
