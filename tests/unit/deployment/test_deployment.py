import resource
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from transformers import BertConfig, BertForPreTraining, BertForQuestionAnswering, BertForSequenceClassification

from mobilebert.deployment.export import MASKED_SCORE, export_onnx
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.modeling import (
    MobileBertConfig,
    MobileBertForQuestionAnswering,
    MobileBertForSequenceClassification,
    MobileBertModel,
)
from mobilebert.modeling.cost import cost
from mobilebert.util.errors import UserError

VOCABULARY = 997
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.1,  # scores as large as trained ones, so that a lost mask shows
}
MOBILEBERT = BERT | {"embedding_size": 24, "intra_bottleneck_size": 32}
TINY_SWITCHES = {
    "use_bottleneck_attention": True,
    "key_query_shared_bottleneck": False,
    "num_feedforward_networks": 2,
}
MODELS = {
    "mobilebert": lambda: MobileBertForSequenceClassification(MobileBertConfig(**MOBILEBERT, num_labels=3)),
    "mobilebert-tiny": lambda: MobileBertForSequenceClassification(MobileBertConfig(**MOBILEBERT, **TINY_SWITCHES)),
    "mobilebert-no-opt": lambda: MobileBertForQuestionAnswering(
        MobileBertConfig(**MOBILEBERT, normalization_type="layer_norm", hidden_act="gelu")
    ),
    "mobilebert-encoder": lambda: MobileBertModel(MobileBertConfig(**MOBILEBERT)),
    "mobilebert-masked-by-6": lambda: MobileBertForSequenceClassification(MobileBertConfig(**MOBILEBERT, mask_value="-6")),
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "bert-qa": lambda: BertForQuestionAnswering(BertConfig(**BERT)),
}
OUTPUTS = {
    "mobilebert-no-opt": ["start_logits", "end_logits"],
    "mobilebert-encoder": ["last_hidden_state"],
    "bert-qa": ["start_logits", "end_logits"],
}


def build(name):
    torch.manual_seed(5)
    return MODELS[name]().eval()


def batch_of(size, length, seed, padded=True):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, length + 1, size=size) if padded else np.full(size, length)
    return {
        "input_ids": draw.integers(1, VOCABULARY, size=(size, length)),
        "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64),
        "token_type_ids": draw.integers(0, 2, size=(size, length)),
    }


def torch_outputs(model, batch):
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in batch.items()})


@pytest.fixture(scope="module", params=list(MODELS))
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    model = build(request.param)
    export_onnx(model, path, length=16)
    return request.param, model, path


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 4), length=st.integers(1, 40), seed=st.integers(0, 99), padded=st.booleans())
def test_the_file_computes_what_the_model_does_at_any_size(exported, size, length, seed, padded):
    name, model, path = exported
    batch = batch_of(size, length, seed, padded)
    outputs = OnnxModel(path)(batch)
    assert list(outputs) == OUTPUTS.get(name, ["logits"])
    expected = torch_outputs(model, batch)
    for key, array in outputs.items():
        np.testing.assert_allclose(array, expected[key].numpy(), rtol=1e-3, atol=1e-4 * expected[key].abs().max().item())


def test_no_constant_of_the_file_would_stretch_an_int8_range(exported):
    graph = onnx.load(exported[2]).graph
    tensors = [*graph.initializer, *(given.t for node in graph.node for given in node.attribute if given.HasField("t"))]
    values = [numpy_helper.to_array(tensor) for tensor in tensors]
    lowest = min(array.min() for array in values if array.dtype == np.float32 and array.size)
    assert lowest == (-6 if exported[0] == "mobilebert-masked-by-6" else MASKED_SCORE)


def test_a_model_in_training_is_exported_without_dropout_and_left_as_it_was(tmp_path):
    model = build("bert").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx", length=8)
    assert model.training
    assert model.bert.encoder.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    batch = batch_of(2, 8, seed=0)
    expected = torch_outputs(model.eval(), batch).logits.numpy()
    np.testing.assert_allclose(OnnxModel(tmp_path / "model.onnx")(batch)["logits"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "length", "message"),
    [
        (lambda: build("bert"), 1, "length: 1"),
        (lambda: build("mobilebert"), 41, "length: 41"),
        (lambda: build("mobilebert").to(torch.bfloat16), 8, "bfloat16"),
        (lambda: BertForPreTraining(BertConfig(**BERT)), 8, "BertForPreTraining"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_and_leaves_no_file(make, length, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export_onnx(make(), tmp_path / "model.onnx", length=length)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    def fail(model, inputs, path, **_):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", fail)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the last good one")
    with pytest.raises(UserError, match=r"model\.onnx: cannot be written \(.*No space left on device"):
        export_onnx(build("mobilebert"), path, length=8)
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"the last good one"]


@contextmanager
def room(size):
    """Limit a file to `size` bytes: a longer write fails in Python and in C++ alike. The limit
    holds for pytest's own output too, if that goes to a file; so it must end before the test's
    outcome is printed, which is earlier than a fixture ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_full_disk_is_a_one_line_error_and_leaves_no_file(share, tmp_path, capfd):
    model, path = build("mobilebert"), tmp_path / "model.onnx"
    export_onnx(model, path, length=8)
    (tmp_path / "new").mkdir()
    size = int(share * path.stat().st_size)
    with room(size), pytest.raises(UserError, match=r"^[^\n]*int8\.onnx: cannot be written \([^\n]*\)$"):
        quantize_int8(path, tmp_path / "new" / "int8.onnx")
    with room(size), pytest.raises(UserError, match=r"^[^\n]*again\.onnx: cannot be written \([^\n]*File too large\)$"):
        export_onnx(model, tmp_path / "new" / "again.onnx", length=8)
    assert list((tmp_path / "new").iterdir()) == []
    assert capfd.readouterr() == ("", "")  # ONNX Runtime's quantizer would log a traceback and use the old file


@pytest.fixture(scope="module")
def quantized(exported):
    path = exported[2].with_name("int8.onnx")
    return path, quantize_int8(exported[2], path)


def test_int8_scores_follow_float_scores(exported, quantized):
    batch = batch_of(64, 24, seed=3)
    floats, ints = OnnxModel(exported[2])(batch), OnnxModel(quantized[0])(batch)
    for key, expected in floats.items():
        assert not np.array_equal(ints[key], expected)
        assert np.corrcoef(ints[key].ravel(), expected.ravel())[0, 1] > 0.999
        assert (ints[key].argmax(-1) == expected.argmax(-1)).mean() > 0.9


def test_int8_scores_are_those_of_exact_sums(exported, quantized):
    """The oracle adds in 32 bits. The rest is rounding: an activation near a half may take the next
    integer. With kernels that add in 16 bits, weights from -127 to 127 gave 0.10 to 0.17 here."""
    batch = batch_of(8, 24, seed=3)
    model = OnnxModel(quantized[0])
    exact = ReferenceEvaluator(onnx.load(quantized[0])).run(model.outputs, {name: batch[name] for name in model.inputs})
    for (key, found), expected in zip(model(batch).items(), exact, strict=True):
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max(), key


def test_no_kernel_can_saturate_on_the_weights_of_the_file(quantized):
    """Two products of an activation (at most 255) and a weight must fit 16 signed bits. Kernels
    without VNNI add them so."""
    graph = onnx.load(quantized[0]).graph
    integers = {tensor.name: numpy_helper.to_array(tensor).astype(int) for tensor in graph.initializer}
    weights = [integers[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(weights) >= 5
    assert all(255 * np.abs(weight).max() * 2 <= 32_767 for weight in weights)
    for weight in weights:  # each column but one of zeros uses its whole range
        assert set(np.abs(weight).max(0)) <= {0, 64}
    # This test would not see a product that has such a name but is not counted above.
    assert {node.op_type for node in graph.node if "MatMul" in node.op_type or "Gemm" in node.op_type} <= {
        "MatMulInteger",
        "MatMul",
    }


def test_every_matrix_that_is_multiplied_is_8_bit_and_within_half_a_step(exported, quantized):
    graph = onnx.load(exported[2]).graph
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    turned = [node.input[1] for node in graph.node if any(a.name == "transB" and a.i for a in node.attribute)]
    before |= {name: before[name].T for name in turned}  # x W'
    graph = onnx.load(quantized[0]).graph
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    float_products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and set(node.input) & set(after)]
    assert float_products == []
    # Optimization renames some tensors; compare those that kept their name.
    matrices = [name for name in before if f"{name}_quantized" in after]
    assert len(matrices) >= 5
    for name in matrices:
        scale, zero = after[f"{name}_scale"], after[f"{name}_zero_point"]
        assert after[f"{name}_quantized"].dtype in (np.int8, np.uint8)
        restored = scale * (after[f"{name}_quantized"].astype(np.float32) - zero.astype(np.float32))
        assert (np.abs(restored - before[name]) <= 0.5001 * scale).all()


def test_the_reported_sizes_are_those_of_the_files(exported, quantized):
    path, sizes = quantized
    assert sizes == {"bytes_before": exported[2].stat().st_size, "bytes_after": path.stat().st_size}


@pytest.mark.parametrize(
    "make",
    [
        lambda: MobileBertModel(MobileBertConfig(**MOBILEBERT, normalization_type="layer_norm")),  # no_norm would be folded
        MODELS["bert"],
    ],
    ids=["mobilebert", "bert"],
)
def test_the_computed_bytes_of_int8_weights_are_those_in_the_file(make, tmp_path):
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # ONNX Runtime stores equal biases once
    export_onnx(model, tmp_path / "float.onnx", length=8)
    quantize_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    beside = ("_scale", "_zero_point", "Constant", "pooler", "classifier")
    weights = [array for name, array in stored.items() if array.dtype != np.int64 and not any(word in name for word in beside)]
    assert cost(model.config.to_dict(), 8).weight_bytes["int8"] == sum(array.nbytes for array in weights)


def test_a_model_that_is_mostly_matrices_shrinks_toward_a_quarter(tmp_path):
    wide = {"hidden_size": 256, "intra_bottleneck_size": 128, "intermediate_size": 1024, "vocab_size": 8000}
    model = MobileBertForSequenceClassification(MobileBertConfig(**MOBILEBERT | wide))
    export_onnx(model, tmp_path / "float.onnx", length=8)
    sizes = quantize_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    assert 3.6 < sizes["bytes_before"] / sizes["bytes_after"] < 4.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]


@pytest.mark.parametrize("spoil", [lambda data: b"", lambda data: b"not a model", lambda data: data[: len(data) // 2]])
def test_a_corrupt_file_is_refused_by_name(spoil, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(build("mobilebert"), path, length=8)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.onnx: not a readable ONNX model"):
        quantize_int8(path, tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        OnnxModel(tmp_path / "absent.onnx")


def test_a_batch_may_hold_more_than_the_model_reads(exported):
    model, batch = OnnxModel(exported[2], threads=2), batch_of(2, 8, seed=1)
    more = {name: array.astype(np.int32) for name, array in batch.items()} | {
        "labels": np.zeros(2),
        "index": ["a", "b"],
    }
    for key, array in model(more).items():
        np.testing.assert_allclose(array, OnnxModel(exported[2])(batch)[key], rtol=1e-4, atol=1e-4)
