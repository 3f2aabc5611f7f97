"""Further ways to int8: what a study asks for, and what the stage reports."""

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch

from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.static_int8 import split_gemms
from mobilebert.modeling import MobileBertConfig, MobileBertModel
from mobilebert.stages.quantize import change
from mobilebert.study.expectations import metrics
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_study_names_further_ways_and_their_metrics():
    study = load_study("smoke")
    plain = build_graph(study)["quantize/mobilebert/sst2"]
    assert "also" not in plain.config  # a study without the key keeps its fingerprints
    more = build_graph(study.model_copy(update={"quantize_also": ("openvino-int8",)}))["quantize/mobilebert/sst2"]
    assert more.config == {**plain.config, "also": ["openvino-int8"]}
    names = set(metrics(plain))
    assert set(metrics(more)) == names | {f"openvino-int8:{name}" for name in names}


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
