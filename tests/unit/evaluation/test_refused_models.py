"""Checkpoints, int8 files and rows that `mobilebert evaluate` and `predict` refuse."""

import json
import shutil

import numpy as np
import onnx
import torch
from scored_models import ROWS, VOCABULARY, add_tokenizer, refused, run
from tokenizers import BertWordPieceTokenizer


def test_checkpoints_that_are_refused(data, checkpoints, tmp_path, capsys):
    def line(model, task="sst2", text=("--text", "red")):
        return refused(capsys, "predict", model, "--task", task, *text)

    pair, question = ("--text", "red", "--text-pair", "cat"), ("--question", "who", "--context", "cat")
    assert "its head has 2 labels, mnli has 3" in line(checkpoints["mobilebert-2"], "mnli", pair)
    assert "its head has 3 labels, sst2 has 2" in line(checkpoints["mobilebert-3"])
    assert "its head has 1 labels, squad_v1.1 has 2" in line(checkpoints["mobilebert-1"], "squad_v1.1", question)
    assert "its checkpoint has no qa_outputs" in line(checkpoints["mobilebert-2"], "squad_v1.1", question)
    assert "its checkpoint has no classifier" in line(checkpoints["mobilebert-qa"])
    assert "its checkpoint has no classifier" in line(checkpoints["pretrained"])
    assert "its checkpoint has no classifier" in line(checkpoints["encoder"])
    assert "no such folder" in line(tmp_path / "absent")
    assert "not a checkpoint" in line(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints["mobilebert-2"], bare)
    (bare / "tokenizer.json").unlink()
    assert "no tokenizer" in line(bare)
    words = {token: code for code, token in enumerate([*VOCABULARY, "more"])}
    BertWordPieceTokenizer(words).save(str(bare / "tokenizer.json"))
    assert "the tokenizer has 17 tokens, the model 16" in line(bare)
    add_tokenizer(bare)
    weights = (bare / "model.safetensors").read_bytes()
    (bare / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "no safetensors file that can be read" in line(bare)
    (bare / "model.safetensors").unlink()
    torch.save({}, bare / "pytorch_model.bin")
    assert "no model.safetensors; pytorch_model.bin is a pickle, which is not read" in line(bare)
    (bare / "config.json").write_text("{")
    assert "config.json is not JSON" in line(bare)


def test_a_vocabulary_without_unk_is_refused(checkpoints, tmp_path, capsys):
    shutil.copytree(checkpoints["mobilebert-2"], tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "model/vocab.txt").write_text("\n".join(token for token in VOCABULARY if token != "[UNK]"))
    message = refused(capsys, "predict", tmp_path / "model", "--task", "sst2", "--text", "red")
    assert "the tokenizer does not encode every text" in message


def onnx_file(path, rows, **outputs):
    """Write an ONNX model that looks up `rows` vectors and return its path. An output is one number
    a row, one number a token, or two numbers a token."""
    path.parent.mkdir()
    helper, table = onnx.helper, np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["found"])]
    for name, kind in outputs.items():
        axes = {"row": [1], "token": [2]}.get(kind)
        given = ["found"] if axes is None else ["found", f"{name}_axes"]
        extra = {} if axes is None else {"keepdims": 0}
        if axes is not None:
            nodes.append(helper.make_node("Constant", [], [f"{name}_axes"], value_ints=axes))
        nodes.append(helper.make_node("Identity" if axes is None else "ReduceSum", given, [name], **extra))
    inputs = [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "sequence"])]
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, given, [onnx.numpy_helper.from_array(table, "table")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    add_tokenizer(path.parent)
    return path


def test_onnx_files_that_do_not_fit_the_task_are_refused(tmp_path, capsys):
    single, question = ("--task", "sst2", "--text", "red"), ("--task", "squad_v1.1", "--question", "who", "--context", "cat")
    right = onnx_file(tmp_path / "right" / "m.onnx", len(VOCABULARY), logits="row")
    assert json.loads(run(capsys, "predict", right, *single))["label"] == "positive"
    right = onnx_file(tmp_path / "answers" / "m.onnx", len(VOCABULARY), start_logits="token", end_logits="token")
    assert json.loads(run(capsys, "predict", right, *question))["prediction"] == "cat"

    few = onnx_file(tmp_path / "few" / "m.onnx", len(VOCABULARY) - 1, logits="row")
    assert "the tokenizer has 16 tokens, more than the model takes" in refused(capsys, "predict", few, *single)
    tokens = onnx_file(tmp_path / "tokens" / "m.onnx", len(VOCABULARY), logits="as they are")
    message = "gives logits of shape (1, 8, 2) for 1 x 8 tokens; sst2 needs (1, 2)"
    assert message in refused(capsys, "predict", tokens, *single)
    rows = onnx_file(tmp_path / "rows" / "m.onnx", len(VOCABULARY), start_logits="token", end_logits="row")
    message = "gives end_logits of shape (1, 2) for 1 x 8 tokens; squad_v1.1 needs (1, 8)"
    assert message in refused(capsys, "predict", rows, *question)
    assert "m.onnx: gives logits; squad_v1.1 needs" in refused(capsys, "predict", right.parents[1] / "right/m.onnx", *question)


def test_a_hub_name_without_network_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read once, at import
    message = refused(capsys, "predict", "nobody/nothing", "--task", "sst2", "--text", "red")
    assert "nobody/nothing: no checkpoint that can be loaded" in message


def test_rows_that_are_refused(data, checkpoints, tmp_path, capsys):
    model = checkpoints["mobilebert-2"]
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "head.tsv").write_text("sentence\n")
    (tmp_path / "other.tsv").write_text("text\nred\n")
    (tmp_path / "twice.tsv").write_text("index\tsentence\n1\tred\n1\tcat\n")
    (tmp_path / "bad.jsonl").write_text('{"sentence": "red"}\n{"sentence": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "number.jsonl").write_text('{"sentence": "red"}\n{"sentence": 3}\n')
    (tmp_path / "keys.jsonl").write_text('{"sentence": "red", "idx": 3}\n{"sentence": "cat"}\n')
    (tmp_path / "lists.jsonl").write_text('{"sentence": "red", "idx": [1]}\n')
    (tmp_path / "both.tsv").write_text("index\tidx\tsentence\n1\t1\tred\n")
    (tmp_path / "kinds.jsonl").write_text('{"sentence": "red", "idx": 3}\n{"sentence": "cat", "idx": "a"}\n')
    (tmp_path / "large.jsonl").write_text('{"sentence": "red", "idx": 9223372036854775808}\n')
    (tmp_path / "half.jsonl").write_text('{"sentence": "red"}\n{"sentence": "\\ud800"}\n')
    (tmp_path / "short.tsv").write_text("idx\tsentence\n1\tred\n2\n")
    (tmp_path / "squad.jsonl").write_text(
        "".join(json.dumps({"id": key, "question": "who", "context": "cat"}) + "\n" for key in (5, "5"))
    )
    for name, message in (
        ("empty.tsv", "is empty"),
        ("head.tsv", "no rows"),
        ("other.tsv", "no column sentence"),
        ("twice.tsv", "idx 1 is there twice"),
        ("bad.jsonl", "row 1 is not JSON"),
        ("list.jsonl", "must be a JSON object"),
        ("number.jsonl", "column sentence is not text in row 1"),
        ("keys.jsonl", "idx of row 1 is nan; allowed: text or an integer in every row"),
        ("lists.jsonl", "idx of row 0 is [1]; allowed: text or an integer"),
        ("both.tsv", "has both idx and index"),
        ("kinds.jsonl", "idx is text in some rows and an integer in others"),
        ("large.jsonl", "idx of row 0 is 9223372036854775808; allowed"),
        ("half.jsonl", "row 1 holds half of a surrogate pair"),
        ("short.tsv", "row 1 has 1 fields, its header 2"),
        ("rows.csv", "read from .tsv, .jsonl or .parquet"),
        ("absent.jsonl", "no such file"),
    ):
        assert message in refused(capsys, "predict", model, "--task", "sst2", "--input", tmp_path / name)
    one = ("predict", model, "--task", "sst2")
    assert "give --text, or a file" in refused(capsys, *one)
    assert "give --text, or a file" in refused(capsys, *one, "--text", "a", "--text-pair", "b")
    assert "text: not UTF-8" in refused(capsys, *one, "--text", "red \udcff")
    assert "give --question and --context" in refused(capsys, *one[:3], "squad_v1.1", "--text", "a")
    assert "not from both" in refused(capsys, *one, "--text", "a", "--input", tmp_path / "head.tsv")
    assert "not from both" in refused(capsys, *one, "--text", "", "--input", tmp_path / "head.tsv")
    squad = ("--task", "squad_v1.1", "--input", tmp_path / "squad.jsonl")
    assert "id 5 is there twice" in refused(capsys, "predict", checkpoints["mobilebert-qa"], *squad)
    for place in (tmp_path / "absent/o.parquet", tmp_path / "folder.parquet"):
        (tmp_path / "folder.parquet").mkdir(exist_ok=True)
        given = ("--task", "sst2", "--data", data, "--predictions", place)
        assert "cannot be written" in refused(capsys, "evaluate", "before/any-work", *given)
    assert "written as .parquet, .jsonl, .tsv" in refused(capsys, *one, "--text", "a", "--output", tmp_path / "p.json")
    given = ("evaluate", checkpoints["mobilebert-3"], "--task", "mnli", "--data", data, "--predictions", tmp_path / "p.tsv")
    assert "one .tsv holds one split" in refused(capsys, *given)
    assert not (tmp_path / "p.tsv").exists()
    run(capsys, *given, "--split", "validation_mismatched")
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == ROWS + 1
