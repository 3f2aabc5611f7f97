"""Further ways to int8: what a study asks for, and what the stage reports."""

import copy
import importlib.util
import re
from types import SimpleNamespace
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

from mobilebert.deployment import ways
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.layer_errors import broken, hidden_errors, hidden_states
from mobilebert.deployment.static_int8 import split_gemms
from mobilebert.modeling import MobileBertConfig, MobileBertModel
from mobilebert.stages import quantize
from mobilebert.stages.quantize import change
from mobilebert.study.expectations import metrics
from mobilebert.study.fields import Quantizer
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_study_names_further_ways_and_their_metrics():
    study = load_study("smoke")
    plain = build_graph(study)["quantize/mobilebert/sst2"]
    assert "also" not in plain.config  # a study without the key keeps its fingerprints
    more = build_graph(study.model_copy(update={"quantize_also": ("openvino-int8",)}))["quantize/mobilebert/sst2"]
    assert more.config == {**plain.config, "also": ["openvino-int8"]}
    names = set(metrics(plain))
    assert set(metrics(more)) == names | {f"openvino-int8:{name}" for name in names}


def test_a_study_may_name_every_way_but_the_first():
    assert {*get_args(Quantizer)} == {*ways.FILES} - {ways.FIRST}
    assert set(ways.METHODS) == set(ways.FILES)


MOBILEBERT = {"model_type": "mobilebert", "normalization_type": "no_norm"}


@pytest.mark.parametrize(
    ("way", "architecture", "line"),
    [
        ("litert-int8", {"model_type": "bert"}, "litert-int8: runs models of the MobileBERT family; this is a bert model"),
        ("onnxruntime-qat", {"model_type": "bert"}, "is MobileBERT's with no_norm; this is bert, layer_norm"),
        ("onnxruntime-qat", MOBILEBERT | {"normalization_type": "layer_norm"}, "no_norm; this is mobilebert, layer_norm"),
    ],
)
def test_a_model_that_a_way_cannot_quantize_is_refused_before_any_work(way, architecture, line):
    with pytest.raises(UserError, match=f"^[^\n]*{line}$"):
        ways.check(way, architecture)


@pytest.mark.parametrize(
    ("way", "package", "extra"),
    [
        ("quanto", "optimum.quanto", "workflow,deploy,quanto"),
        ("litert-dynamic", "tensorflow", "workflow,deploy,tensorflow,litert"),
        ("litert-int8", "ai_edge_litert", "workflow,deploy,tensorflow,litert"),
        ("openvino-int8", "nncf", "deploy,openvino"),
        ("onnxruntime-qat", "onnx", "deploy"),
    ],
)
def test_a_missing_extra_is_one_line_before_any_work(way, package, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    line = f"{package.replace('_', '-')} is not installed; it comes with: pip install '.[{extra}]'"
    with pytest.raises(UserError, match=re.escape(line)):
        ways.check(way, MOBILEBERT)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    ways.check(way, MOBILEBERT)


def test_a_file_of_another_model_is_refused(tmp_path):
    wanted = {"logits": np.array([[1.0, -2.0]])}
    rows = [{}, {}]
    near = lambda row: {"logits": wanted["logits"] * 1.00005}  # noqa: E731
    assert ways.check_file(near, lambda row: wanted, rows, tmp_path, 1e-4) == pytest.approx(5e-5)
    for other in (wanted["logits"] * 1.001, wanted["logits"] * np.nan, wanted["logits"][:, :1]):
        with pytest.raises(UserError, match=r"model.onnx: its outputs are off by .* it is not the same model$"):
            ways.check_file(lambda row, other=other: {"logits": other}, lambda row: wanted, rows, tmp_path / "model.onnx", 1e-4)


def test_broken_layers_are_named_in_the_record_and_on_stderr(caplog):
    errors = {"0": 0.05, "10": 0.4, "9": 0.11, "2": 0.1}
    assert broken(errors) == ("9", "10")
    quantize.warn("quantize/m/sst2", "litert-int8", SimpleNamespace(broken_layers=("9", "10"), layer_errors=errors))
    assert caplog.messages == [
        "quantize/m/sst2: litert-int8: layers whose output is off by more than 0.1 of float32's: 9 (0.11), 10 (0.40)"
    ]
    quantize.warn("quantize/m/sst2", "litert-int8", SimpleNamespace(broken_layers=(), layer_errors={}))
    assert len(caplog.messages) == 1


def test_a_planted_error_is_found_in_its_layer_and_those_behind_it():
    torch.manual_seed(0)
    model = MobileBertModel(MobileBertConfig(embedding_size=16, intra_bottleneck_size=16, **SIZES)).eval()
    other = copy.deepcopy(model)
    row = {"input_ids": np.arange(8)[None], "attention_mask": np.ones((1, 8), np.int64)}
    states = hidden_states(model, row)
    assert hidden_errors(states, hidden_states(other, row)) == {"0": 0.0, "1": 0.0}
    with torch.no_grad():
        other.encoder.layer[1].output.bottleneck.LayerNorm.weight *= 1.5
    found = hidden_errors(states, hidden_states(other, row))
    assert found["0"] == 0
    assert found["1"] == pytest.approx(0.5, rel=1e-4)


def test_no_rows_to_calibrate_on_and_another_vocabulary_are_one_line(tmp_path):
    context = SimpleNamespace(job=SimpleNamespace(id="quantize/m/sst2"), settings=lambda kind: kind.model_construct(task="sst2"))
    with pytest.raises(UserError, match=r"^quantize/m/sst2: the training split of sst2 has no rows to calibrate on$"):
        quantize.prepare(context, None, tmp_path, [])
    tokenizer, model = SimpleNamespace(get_vocab_size=lambda: 30522), SimpleNamespace(config=SimpleNamespace(vocab_size=600))
    with pytest.raises(UserError, match=r"^finetune/m/sst2: the tokenizer has 30522 entries, the model 600"):
        quantize.check_tokens("finetune/m/sst2", tokenizer, model)


def test_a_graph_without_gemms_computes_the_same(tmp_path):
    torch.manual_seed(0)
    model = MobileBertModel(MobileBertConfig(embedding_size=16, intra_bottleneck_size=16, **SIZES)).eval()
    export_onnx(model, tmp_path / "model.onnx", length=8)
    graph = onnx.load(tmp_path / "model.onnx")
    before = graph.SerializeToString()
    assert any(node.op_type == "Gemm" for node in graph.graph.node)  # of the folded blocks
    split_gemms(graph)
    assert not any(node.op_type == "Gemm" for node in graph.graph.node)
    feed = {"input_ids": np.arange(16).reshape(2, 8), "attention_mask": np.ones((2, 8), np.int64)}
    feed["token_type_ids"] = np.zeros((2, 8), np.int64)
    found = [onnxruntime.InferenceSession(text).run(None, feed)[0] for text in (before, graph.SerializeToString())]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_the_change_of_accuracy_is_paired_by_row(tmp_path):
    rows = pd.DataFrame({"split": "validation", "idx": range(100), "label": [0, 1] * 50})
    floats = rows.assign(prediction=rows["label"])
    floats.loc[:9, "prediction"] = 1 - floats["label"]  # ten wrong answers
    mine = floats.sample(frac=1, random_state=0)  # in another order
    mine.loc[mine["idx"] == 50, "prediction"] = 1 - mine["label"]  # one more, and the order does not matter
    extra = rows.assign(split="validation_mismatched", prediction=0)
    pd.concat([mine, extra]).to_parquet(tmp_path / "mine.parquet")
    floats.to_parquet(tmp_path / "float.parquet")
    found = change("sst2", tmp_path / "mine.parquet", tmp_path / "float.parquet")
    assert found["rows"] == 100
    assert found["points"] == pytest.approx(-1.0)
    # Bonett and Price (2012): one row in 100 and one more each way; Wald's formula, written out.
    share_lost, share_won = 2 / 102, 1 / 102
    error = 100 * np.sqrt((share_lost + share_won - (share_lost - share_won) ** 2) / 102)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.98 * error, rel=0.02)
    assert change("stsb", tmp_path / "mine.parquet", tmp_path / "float.parquet") is None
    assert change("sst2", tmp_path / "mine.parquet", tmp_path / "none.parquet") is None
