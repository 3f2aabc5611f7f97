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
from mobilebert.deployment.lite_rt_files import on_padded
from mobilebert.deployment.quantized_files import FILES
from mobilebert.deployment.requirements import check_installed, check_jobs, unfit
from mobilebert.deployment.static_int8 import split_gemms
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.record import Quantization
from mobilebert.modeling import MobileBertConfig, MobileBertModel
from mobilebert.stages import quantize
from mobilebert.stages.quantize import change
from mobilebert.study.expectations import metrics
from mobilebert.study.fields import Quantizer
from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.job import Job
from mobilebert.study.load import load_study
from mobilebert.study.stage_config import FinetuneConfig, QuantizeConfig
from mobilebert.util.errors import Diverged, UserError

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
        ("onnxruntime-qat", MOBILEBERT | {"hidden_act": "gelu"}, "training is for relu and relu6; hidden_act is gelu"),
    ],
)
def test_a_model_that_a_way_cannot_quantize_is_named_in_one_line(way, architecture, line):
    assert re.fullmatch(f"{way}: [^\n]*", unfit(way, architecture))
    assert unfit(way, architecture).endswith(line)
    assert unfit(way, MOBILEBERT) is None


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
        check_installed(way)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_installed(way)


@pytest.fixture
def asked(monkeypatch):
    """Return a function that checks the jobs of smoke, which quantizes models in further ways."""

    def check(way, quantize, results, ids=None):
        study = load_study("smoke")
        study = study.model_copy(update={"quantize_also": (way,), "quantize": quantize, "expect": ()})
        graph = build_graph(study)
        check_jobs(study, results, graph, jobs_in_scope(study, graph) if ids is None else ids)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return check


def test_a_missing_package_is_refused_before_the_study_trains(asked, tmp_path, monkeypatch):
    asked("quanto", {"mobilebert": ("sst2",)}, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^quanto: optimum is not installed"):
        asked("quanto", {"mobilebert": ("sst2",)}, tmp_path)
    asked("quanto", {"mobilebert": ("sst2",)}, tmp_path, ["finetune/mobilebert/sst2"])  # which quantizes nothing


def test_a_way_that_fits_no_model_is_refused_and_one_that_fits_some_is_not(asked, tmp_path):
    teacher = {"ib-bert-large": ("sst2",)}
    with pytest.raises(UserError, match=r"^onnxruntime-qat: [^\n]*this is mobilebert, layer_norm$"):
        asked("onnxruntime-qat", teacher, tmp_path)
    asked("onnxruntime-qat", teacher | {"mobilebert": ("sst2",)}, tmp_path)
    asked("onnxruntime-qat", {"mobilebert": ("sst2",)}, tmp_path, ["quantize/ib-bert-large/sst2"])


def test_a_file_of_another_model_is_refused(tmp_path):
    wanted = {"logits": np.array([[1.0, -2.0]])}
    rows = [{}, {}]
    assert ways.check_file(
        lambda row: {"logits": wanted["logits"] * 1.00005}, lambda row: wanted, rows, tmp_path, 1e-4
    ) == pytest.approx(5e-5)
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
    quantize.warn("quantize/m/sst2", "quanto", SimpleNamespace(broken_layers=("3",), layer_errors={}))
    assert caplog.messages[1].endswith(": 3 (not finite)")


def test_a_layer_whose_output_is_not_finite_is_broken():
    before = {layer: np.ones((1, 2)) for layer in "0123"} | {"4": np.zeros((1, 2))}
    after = {
        "0": np.ones((1, 2)),
        "1": np.full((1, 2), np.nan),
        "2": np.full((1, 2), np.inf),
        "3": np.ones((2, 1)),
        "4": np.ones((1, 2)),
    }
    errors = hidden_errors(before, after)
    assert set(errors) == {"0", "1", "2"}  # the others have nothing to compare
    assert broken(errors) == ("1", "2")


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


def test_the_float_model_sees_rows_padded_as_the_file_pads_them():
    seen = []

    def forward(batch):
        seen.append(batch)
        return {"logits": np.zeros((2, 3)), "start_logits": np.arange(16).reshape(2, 8)}

    ids = np.arange(1, 11).reshape(2, 5)
    found = on_padded(forward, 8)({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": np.array([0, 1])})
    np.testing.assert_array_equal(seen[0]["input_ids"], [[1, 2, 3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 0, 0, 0]])
    np.testing.assert_array_equal(seen[0]["attention_mask"], [[1] * 5 + [0] * 3] * 2)
    np.testing.assert_array_equal(seen[0]["labels"], [0, 1])
    np.testing.assert_array_equal(found["start_logits"], [[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]])
    assert found["logits"].shape == (2, 3)


# --- the stage, with its engines and scores replaced


SCORES = {"accuracy": 0.9, "majority": 0.5}
MADE = Quantization.model_construct(bytes_before=9, bytes_after=3, broken_layers=(), layer_errors={})


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Return a function that runs the stage on a task; a way in `failing` raises its error."""

    def run(also, failing=(), task="sst2"):
        failing = dict(failing)
        tuned = SimpleNamespace(
            details={"seeds": [0], "best_seed": 0}, samples={name: [0.95] for name in SCORES}, artefacts=("predictions.parquet",)
        )
        setting = QuantizeConfig.model_construct(task=task, also=also, length=16)
        shape = FinetuneConfig.model_construct(architecture={"model_type": "mobilebert", "normalization_type": "no_norm"})
        context = JobContext(Job("quantize", f"m/{task}", {}, (), "a" * 64), "study", tmp_path, {})
        context.graph = {f"finetune/m/{task}": SimpleNamespace(settings=lambda kind: shape)}
        context.settings = lambda kind: setting
        context.record_of = lambda key: tuned
        context.artefact_of = lambda key, name: tmp_path / name
        context.label = lambda labels, *keys: None
        for folder in (context.folder, context.state):
            folder.mkdir(parents=True)

        def write(way, source, folder):
            (folder / FILES[way]).write_bytes(b"int8")
            if way in failing:
                raise failing[way]
            return object(), [FILES[way]]

        def evaluate(forward, tokenizer, data, setting, out, size=64):
            pd.DataFrame({"prediction": [out.name]}).to_parquet(out / "predictions.parquet")
            return dict(SCORES), {"rows": {}, "shares": {}}

        source = ways.Source(None, tmp_path / "model", tmp_path / "model.onnx", [], 16)
        for name, value in {
            "prepare": lambda *given: source,
            "evaluate": evaluate,
            "train_aware": lambda *given: (SimpleNamespace(), 7),
            "forward_of": lambda *given: None,
            "new_model": lambda *given: SimpleNamespace(eval=lambda: None),
            "status": lambda *given: "ok",
            "change": lambda task, mine, floats: {"mine": mine, "floats": floats},
            "device_of": lambda study: "cpu",
            **dict.fromkeys(("weights_folder", "load_tokenizer", "training_rows", "check_tokens"), lambda *given: tmp_path),
        }.items():
            monkeypatch.setattr(quantize, name, value)
        monkeypatch.setattr(ways, "quantize", write)
        monkeypatch.setattr(ways, "describe", lambda *given: MADE)
        monkeypatch.setattr(ways, "check_file", lambda *given: 0.01)
        monkeypatch.setattr(quantize.lite_rt_files, "float_model", lambda *given: None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        quantize.main(context, None)
        return context

    return run


@pytest.mark.parametrize("error", [UserError("quanto: no such layer"), Diverged("logits: not finite")])
def test_a_further_way_that_fails_leaves_its_reason_and_table_6_its_score(stage, error, caplog):
    context = stage(("quanto", "openvino-int8"), {"quanto": error})
    assert context.details["quanto"] == {"reason": str(error)}
    assert str(error) in caplog.text
    assert context.metrics["accuracy"] == context.metrics["openvino-int8:accuracy"] == 0.9
    assert not any(name.startswith("quanto:") for name in context.metrics)
    assert set(context.quantizations) == {"onnxruntime-int8", "openvino-int8"}
    assert context.quantization is MADE
    assert context.details["statuses"] == ["ok"]
    assert context.artefacts == ["model.int8.onnx", "model.nncf.xml", "predictions.parquet"]
    assert {path.name for path in context.folder.iterdir()} == set(context.artefacts)
    predictions = pd.read_parquet(context.folder / "predictions.parquet")
    assert predictions["prediction"].tolist() == [context.folder.name]  # those of the first way


def test_the_first_way_that_fails_fails_the_job(stage):
    with pytest.raises(UserError, match="no disk"):
        stage(("quanto",), {"onnxruntime-int8": UserError("no disk")})


def test_an_unfit_model_is_a_reason_of_its_record(stage, monkeypatch):
    monkeypatch.setattr(quantize, "unfit", lambda way, architecture: f"{way}: {architecture['model_type']} does not fit")
    context = stage(("litert-int8",))
    assert context.details["litert-int8"] == {"reason": "litert-int8: mobilebert does not fit"}
    assert context.metrics["accuracy"] == 0.9


def test_a_padded_file_is_compared_with_the_float_model_on_padded_rows(stage):
    context = stage(("litert-int8",))
    found, float_file = context.details["litert-int8"], context.state / "litert-int8-float/predictions.parquet"
    assert float_file.is_file()
    assert found["change"] == {"mine": context.state / "litert-int8/predictions.parquet", "floats": float_file}
    plain = context.details["change"]["floats"]
    assert plain != float_file
    assert found["padded_float"] == {"tokens": 16, "scores": SCORES, "change": {"mine": float_file, "floats": plain}}


@pytest.mark.parametrize(("task", "has_agreement"), [("sst2", True), ("stsb", False)])
def test_only_predictions_that_are_no_numbers_are_compared_for_equality(stage, task, has_agreement):
    found = stage(("onnxruntime-qat",), task=task).details["onnxruntime-qat"]
    assert found["export_error"] == 0.01
    assert ("fake_quantized_agreement" in found) is has_agreement


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
