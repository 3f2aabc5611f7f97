"""Every way to int8 writes a file near the float model, and describes it in one shape."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from mobilebert import fold
from mobilebert.deployment import lite_rt_files, ways
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.fake_quantization import aware
from mobilebert.deployment.quantize import OnnxModel
from mobilebert.finetuning.task import forward_of
from mobilebert.modeling import MobileBertConfig, MobileBertForQuestionAnswering, MobileBertForSequenceClassification
from mobilebert.util.errors import UserError

LENGTH = 16
SIZES = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {**SIZES, "embedding_size": 32, "intra_bottleneck_size": 32}
KINDS = {"classes": MobileBertForSequenceClassification, "answers": MobileBertForQuestionAnswering}
NEEDED = {"openvino-int8": ["nncf"], "quanto": ["optimum.quanto"], "litert": ["tensorflow", "ai_edge_litert"]}


def needs(way):
    for package in NEEDED.get("litert" if way.startswith("litert") else way, ()):
        pytest.importorskip(package, reason=f"{package} is not installed: make test-engines")


@pytest.fixture(params=KINDS)
def source(request, tmp_path_factory):
    """Return a model in every form, with rows of 5 to 16 tokens."""
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    model = KINDS[request.param](MobileBertConfig(**SMALL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # else the outputs are near 0, and rounding is most of them
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.mobilebert.embeddings.word_embeddings.weight[0].normal_(std=0.5)  # [PAD]: training moves it, and it is a neighbour
    model.save_pretrained(folder / "model")
    export_onnx(model, folder / "model.onnx", length=LENGTH)
    draw, rows = np.random.default_rng(0), []
    for tokens in (9, 5, 16, 12):
        ones = np.ones((1, tokens), np.int64)
        rows.append({"input_ids": draw.integers(1, 99, (1, tokens)), "attention_mask": ones, "token_type_ids": 0 * ones})
    learner = aware(model).train()
    with torch.no_grad():
        for row in rows:
            learner(**{name: torch.from_numpy(array) for name, array in row.items()})
    return ways.Source(model, folder / "model", folder / "model.onnx", rows, LENGTH, learner.eval(), aware_rows=4)


@pytest.mark.parametrize("way", ways.FILES)
def test_a_way_writes_a_file_near_the_model_and_a_whole_record(way, source, tmp_path):
    needs(way)
    loaded, names = ways.quantize(way, source, tmp_path)
    record = ways.describe(way, source, tmp_path, loaded)
    reference = forward_of(source.aware if way == ways.AWARE else source.model, "cpu")
    if way.startswith("litert"):  # its rows are padded, which changes the float model's outputs too
        model = lite_rt_files.float_model(way, source.model, source.checkpoint)
        reference = lite_rt_files.on_padded(forward_of(model, "cpu"), source.length)
    most = 0.05 if way.startswith("litert") else 0.2  # padding alone moves the start and the end of an answer by 0.4
    error = ways.check_file(loaded, reference, source.rows, tmp_path, most)
    assert error < 1e-3 if way == ways.AWARE else error > 1e-6  # the former has the grids of its reference
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert record.bytes_after == sum((tmp_path / name).stat().st_size for name in names if name != "model.quanto.json")
    if way != "openvino-int8":  # its list of operations is larger than the weights of so small a model
        assert record.bytes_after < record.bytes_before
    assert record.method == ways.METHODS[way]
    assert not record.saturates
    assert record.scored_on["isa"]
    least, most = record.weight_range
    if way.startswith(("onnxruntime", "openvino")):  # half the range: see `saturates`
        assert -64 <= least < -32
        assert 32 < most <= 64
    else:
        assert (least, most) == (-127, 127)
    assert record.calibration_rows == (4 if way in ("onnxruntime-static", ways.AWARE, "openvino-int8", "litert-int8") else 0)
    share = record.ran_int8_flops_share
    assert share == 0 if way == "quanto" else share == pytest.approx(record.int8_flops_share) and share > 0.9
    if not way.startswith("litert"):
        assert set(record.layer_errors) == {"0", "1"}
        assert max(record.layer_errors.values()) < (1e-2 if way == ways.AWARE else 0.2)
        assert way == ways.AWARE or min(record.layer_errors.values()) > 1e-4


def test_the_error_of_the_last_layer_in_openvino_is_that_of_the_output(source, tmp_path):
    needs("openvino-int8")
    model = source.model.mobilebert
    model.pooler = None
    export_onnx(model, tmp_path / "model.onnx", length=LENGTH)
    body = ways.Source(model, tmp_path, tmp_path / "model.onnx", source.rows, LENGTH)
    loaded, _ = ways.quantize("openvino-int8", body, tmp_path)
    last = fold(model).encoder.layer[-1]  # in the file a layer ends before its scale and shift
    scale, shift = last.scale.numpy(), last.shift.numpy()
    found, wanted = ((one(source.rows[0])["last_hidden_state"] - shift) / scale for one in (loaded, OnnxModel(body.file)))
    errors = ways.describe("openvino-int8", body, tmp_path, loaded).layer_errors
    assert errors["1"] == pytest.approx(np.linalg.norm(found - wanted) / np.linalg.norm(wanted), rel=0.01)


SCORES = """
import sys
import numpy as np
import openvino
core = openvino.Core()
run = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
draw, found = np.random.default_rng(0), []
for _ in range(200):
    ids = draw.integers(1, 99, (1, 16))
    found.append(next(iter(run({"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}).values())))
kernels = [node.get_rt_info()["primitiveType"].value for node in run.get_runtime_model().get_ordered_ops()]
np.savez(sys.argv[2], logits=np.concatenate(found), kernels=kernels)
"""


def test_a_file_has_the_same_scores_with_wide_and_narrow_kernels(source, tmp_path):
    """200 rows: at most one prediction differs by 0.5 point. OpenVINO alone can be narrowed."""
    needs("openvino-int8")
    ways.quantize("openvino-int8", source, tmp_path)
    found = {}
    for name, limit in (("wide", {}), ("narrow", {"ONEDNN_MAX_CPU_ISA": "SSE41"})):
        command = [sys.executable, "-c", SCORES, str(tmp_path / "model.nncf.xml"), str(tmp_path / f"{name}.npz")]
        subprocess.run(command, env={**os.environ, **limit}, check=True)
        found[name] = dict(np.load(tmp_path / f"{name}.npz"))
    if platform.machine() == "x86_64":
        assert any("sse42" in kernel for kernel in found["narrow"]["kernels"])
        assert not any("sse42" in kernel for kernel in found["wide"]["kernels"])
    predictions = [one["logits"].argmax(-1) for one in found.values()]
    assert (predictions[0] != predictions[1]).mean() < 0.005
    np.testing.assert_allclose(found["narrow"]["logits"], found["wide"]["logits"], rtol=0.05, atol=0.02)


def test_a_tflite_file_takes_shorter_rows_as_padded_ones(source, tmp_path):
    needs("litert-dynamic")
    loaded, _ = ways.quantize("litert-dynamic", source, tmp_path)
    for row in source.rows:
        for array in loaded(row).values():
            assert array.shape[1] in (2, row["input_ids"].shape[1])
    with pytest.raises(UserError, match=r"model\.dynamic\.tflite"):
        loaded({name: np.ones((2, LENGTH), np.int64) for name in source.rows[0]})
