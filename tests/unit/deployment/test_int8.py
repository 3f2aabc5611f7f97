"""The description of an 8-bit ONNX file: graphs built and counted by hand."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import BertWordPieceTokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from mobilebert.cli.main import main
from mobilebert.deployment import int8
from mobilebert.deployment.export import INPUTS, export_onnx
from mobilebert.deployment.quantize import OnnxModel, quantize_int8
from mobilebert.modeling import MobileBertConfig, MobileBertForSequenceClassification, fold
from mobilebert.stages import quantize

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "cat"]
SMALL = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LENGTH = 12
MODELS = {
    "mobilebert": lambda: MobileBertForSequenceClassification(
        MobileBertConfig(**SMALL, embedding_size=16, intra_bottleneck_size=16, num_labels=2)
    ),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL, num_labels=2)),
}


def graph_of(nodes, constants=(), inputs=(("x", TensorProto.FLOAT),), outputs=()):
    given = [helper.make_tensor_value_info(name, kind, ["batch", "sequence", 4]) for name, kind in inputs]
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    held = [numpy_helper.from_array(array, name) for name, array in dict(constants).items()]
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", given, made, held), opset_imports=domains, ir_version=10)


def dynamic(weights):
    """Return a graph of x, quantized at run time, times `weights` (4 rows)."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["y"]),
    ]
    return graph_of(nodes, {"w": weights}, outputs=[("y", TensorProto.INT32)])


def between(low, high, kind=np.int8):
    return np.linspace(low, high, 24).round().astype(kind).reshape(4, 6)


def one(node, first, weights, **more):
    """Return a graph of a product whose first input has the type `first`."""
    return graph_of([node], {"w": weights} | more, inputs=[("x", first)])


def qdq(activations):
    """Return MatMul between DequantizeLinears, the weights behind a Transpose."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["e"]),
        helper.make_node("Transpose", ["e"], ["t"]),
        helper.make_node("MatMul", ["d", "t"], ["y"]),
    ]
    constants = {"w": between(-127, 127).T, "scale": np.float32(1), "zero": np.zeros((), activations)}
    return graph_of(nodes, constants, outputs=[("y", TensorProto.FLOAT)])


U8, S8, F32 = TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT
FULL = between(-127, 127)
NUMBERS = {"s": np.float32(1), "z": np.uint8(0), "z8": np.int8(0)}
MATMUL = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
TURNED = helper.make_node("MatMulInteger", ["w", "x"], ["y"])
LINEAR = helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "z8", "s", "z"], ["y"])
HELD = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(between(-3, 64)))
FUSED = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")


@pytest.mark.parametrize(
    ("model", "types", "bounds", "saturates"),
    [
        (dynamic(between(-64, 64)), ("uint8", "int8"), (-64, 64), False),  # 255 x 64 x 2 = 32,640
        (dynamic(between(-3, 65)), ("uint8", "int8"), (-3, 65), True),  # 255 x 65 x 2 = 33,150
        (dynamic(between(-65, 2)), ("uint8", "int8"), (-65, 2), True),
        (dynamic(between(-128, 0)), ("uint8", "int8"), (-128, 0), True),
        (dynamic(between(0, 255, np.uint8)), ("uint8", "uint8"), (0, 255), False),
        (one(MATMUL, S8, FULL), ("int8", "int8"), (-127, 127), False),
        (one(TURNED, U8, FULL), ("int8", "uint8"), (0, 255), False),
        (one(LINEAR, U8, FULL, **NUMBERS), ("uint8", "int8"), (-127, 127), True),
        (one(FUSED, F32, FULL, **NUMBERS), ("uint8", "int8"), (-127, 127), True),
        (
            graph_of([HELD, helper.make_node("MatMulInteger", ["x", "v"], ["y"])], inputs=[("x", U8)]),
            ("uint8", "int8"),
            (-3, 64),
            False,
        ),
        (qdq(np.uint8), ("uint8", "int8"), (-127, 127), True),
        (qdq(np.int8), ("int8", "int8"), (-127, 127), False),
    ],
)
def test_a_product_saturates_if_two_neighbours_may_pass_16_bits(model, types, bounds, saturates):
    (found,) = int8.products(model)
    assert (found.types, found.weight_range, found.saturates) == (types, bounds, saturates)


def test_a_second_factor_that_is_no_constant_may_take_every_value_of_its_type():
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    (found,) = int8.products(graph_of([node], inputs=[("x", U8), ("w", S8)], outputs=[("y", TensorProto.INT32)]))
    assert (found.weight_range, found.saturates) == ((-128, 127), True)


def test_float_products_are_not_8_bit():
    table = {"table": np.zeros((9, 4), np.uint8), "scale": np.float32(1), "w": np.ones((4, 6), np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("DequantizeLinear", ["rows", "scale"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    model = graph_of(nodes, table, inputs=[("x", TensorProto.INT64)], outputs=[("y", TensorProto.FLOAT)])
    assert [item.types for item in int8.products(model)] == [None]


@pytest.mark.parametrize(("length", "share"), [(3, 144 / (144 + 72 + 24)), (5, 240 / (240 + 200 + 40))])
def test_the_share_of_8_bit_flops_is_that_counted_by_hand(length, share):
    nodes = [
        *dynamic(between(-64, 64)).graph.node,  # length x 4 by 4 x 6
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),  # length x 4 by 4 x length: two activations, as in attention
        helper.make_node("Squeeze", ["t", "first"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v"], ["z"], transA=1),  # length x 4 by 4 x 1
    ]
    constants = {"w": between(-64, 64), "v": np.ones((4, 1), np.float32), "first": np.array([0])}
    model = graph_of(
        nodes, constants, outputs=[("y", TensorProto.INT32), ("scores", TensorProto.FLOAT), ("z", TensorProto.FLOAT)]
    )
    assert int8.int8_flops_share(model, length) == pytest.approx(share)


def test_a_graph_without_products_has_no_share():
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    assert int8.int8_flops_share(graph_of(nodes, outputs=[("y", TensorProto.FLOAT)]), 3) is None


# --- files of whole models


@pytest.fixture(scope="module", params=list(MODELS))
def files(request, tmp_path_factory):
    """Return a model and a folder with its float file, our int8 file, and onnxruntime's by default.
    The last one has weights from -127 to 127."""
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(2)
    model = MODELS[request.param]().eval()
    export_onnx(model, folder / "float.onnx", length=8)
    quantize_int8(folder / "float.onnx", folder / "ours.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "full.onnx", weight_type=QuantType.QInt8, per_channel=True)
    BertWordPieceTokenizer({token: code for code, token in enumerate(WORDS)}).save(str(folder / "tokenizer.json"))
    return model, folder


def test_the_record_says_how_the_file_was_made_and_where_it_is_scored(files, monkeypatch):
    model, folder = files
    monkeypatch.setattr(int8, "processor", lambda: {"cpu": "a processor", "isa": "avx2"})
    found = int8.describe(folder / "float.onnx", folder / "ours.onnx", LENGTH)
    ids = torch.ones(1, LENGTH, dtype=torch.int64)
    if isinstance(model, MobileBertForSequenceClassification):
        model = fold(model)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids)
    linear = sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "bmm" not in str(name))
    width = 16 if hasattr(model, "mobilebert") else 32
    attention = 2 * 2 * (2 * LENGTH * LENGTH * width)  # in each layer the scores and the context
    assert found.int8_flops_share == pytest.approx(linear / (linear + attention), rel=1e-12)
    assert found.model_dump(exclude={"int8_flops_share"}) == {
        "method": "dynamic",
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "weight_range": (-64, 64),
        "activation_type": "uint8",
        "saturates": False,
        "scored_on": {"cpu": "a processor", "isa": "avx2"},
        "bytes_before": (folder / "float.onnx").stat().st_size,
        "bytes_after": (folder / "ours.onnx").stat().st_size,
        "ran_int8_flops_share": None,
        "layer_errors": {},
        "calibration_rows": 0,
        "broken_layers": (),
    }
    other = int8.describe(folder / "float.onnx", folder / "full.onnx", LENGTH)
    assert (other.weight_range, other.saturates) == ((-127, 127), True)


def test_the_stage_records_the_quantization_before_it_scores(files, tmp_path, monkeypatch):
    model, _ = files
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.setattr(quantize, "new_model", lambda *_: model)
    monkeypatch.setattr(quantize, "load_tokenizer", lambda _: SimpleNamespace(get_vocab_size=lambda: len(WORDS)))
    monkeypatch.setattr(quantize, "weights_folder", lambda *_: None)
    row = {name: np.ones((1, LENGTH), np.int64) for name in INPUTS}
    monkeypatch.setattr(quantize, "training_rows", lambda *_: [row])

    def evaluate(*_):
        raise RuntimeError("scored elsewhere")

    monkeypatch.setattr(quantize, "evaluate", evaluate)
    run = SimpleNamespace(
        job=SimpleNamespace(name="m/sst2", id="quantize/m/sst2"),
        settings=lambda kind: kind.model_construct(task="sst2", length=LENGTH),
        graph={"finetune/m/sst2": SimpleNamespace(settings=lambda kind: kind.model_construct(architecture=None))},
        artefact_of=lambda *_: tmp_path / "tokenizer/tokenizer.json",
        record_of=lambda _: SimpleNamespace(),
        state=tmp_path,
        folder=tmp_path,
        metrics={},
        quantization=None,
        quantizations={},
    )
    with pytest.raises(RuntimeError, match="scored elsewhere"):
        quantize.main(run, None)
    assert run.quantization.scored_on == int8.processor()
    # Two independent counts: from the graph of the file, and from the engine's profile of a run.
    assert run.quantization.ran_int8_flops_share == pytest.approx(run.quantization.int8_flops_share, rel=1e-12)
    assert set(run.quantization.layer_errors) == {"0", "1"}
    assert all(1e-5 < error < 0.1 for error in run.quantization.layer_errors.values())
    assert run.quantization.bytes_after == run.metrics["bytes_after"] == (tmp_path / "model.int8.onnx").stat().st_size


@pytest.mark.parametrize(
    ("isa", "says"),
    [("avx2", True), ("avx512bw", True), ("unknown", True), ("avx_vnni", False), ("amx_int8", False), ("asimddp", False)],
)
def test_a_file_that_may_saturate_on_this_processor_is_named_in_one_line(files, isa, says, monkeypatch, capsys):
    folder = files[1]
    monkeypatch.setattr(int8, "processor", lambda: {"cpu": "a processor", "isa": isa})
    for name in ("float", "ours", "full"):
        assert main(["predict", str(folder / f"{name}.onnx"), "--task", "sst2", "--text", "a red cat"]) == 0
        found = capsys.readouterr().err
        if name == "full" and says:
            assert found.startswith(
                f"mobilebert: {folder}/full.onnx: its scores depend on the processor: weights from -127 to 127"
            )
            assert f"(here: {isa}); quantize again" in found
            assert found.count("\n") == 1
        else:
            assert found == ""


def test_tensors_in_a_file_of_their_own_are_read(files, tmp_path):
    for name in ("ours", "full"):
        model = onnx.load(files[1] / f"{name}.onnx")
        onnx.save(model, tmp_path / f"{name}.onnx", save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    assert int8.dependence(tmp_path / "ours.onnx", "avx2") is None
    assert "weights from -127 to 127" in int8.dependence(tmp_path / "full.onnx", "avx2")


def test_a_file_in_the_format_of_onnx_runtime_is_read_without_a_warning(files, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "full.ort")
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(files[1] / "full.onnx", options, providers=["CPUExecutionProvider"])
    assert OnnxModel(tmp_path / "full.ort").outputs == ["logits"]
    assert int8.dependence(tmp_path / "full.ort", "avx2") is None


# --- the processor

INTEL = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu sse4_1 avx2 avx512bw avx512_vnni{}\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu sse4_1 avx2 bmi2\n", {"cpu": "AMD EPYC", "isa": "avx2"}),
        (INTEL.format(""), {"cpu": "Xeon", "isa": "avx512_vnni"}),
        (INTEL.format(" amx_bf16 amx_int8"), {"cpu": "Xeon", "isa": "amx_int8"}),
        ("model name\t: Core\nflags\t\t: sse4_1 avx2 avx_vnni\n", {"cpu": "Core", "isa": "avx_vnni"}),
        ("model name\t: Skylake\nflags\t\t: sse4_1 avx2 avx512f avx512bw\n", {"cpu": "Skylake", "isa": "avx512bw"}),
        ("model name\t: Old\nflags\t\t: fpu sse2\n", {"cpu": "Old", "isa": "unknown"}),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n", {"cpu": "Arm", "isa": "asimddp"}),
        ("", {"cpu": "Arm", "isa": "unknown"}),
    ],
)
def test_the_processor_is_named_with_its_best_instructions(text, expected, monkeypatch):
    monkeypatch.setattr(int8.platform, "processor", lambda: "Arm")
    monkeypatch.setattr(int8.platform, "machine", lambda: "x86_64")
    assert int8.processor(text) == expected


def test_a_record_names_a_variable_that_narrows_the_kernels(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert int8.processor(INTEL.format("")) == {"cpu": "Xeon", "isa": "avx512_vnni", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def test_a_machine_without_proc_is_named_by_its_kind(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(int8.Path, "read_text", missing)
    monkeypatch.setattr(int8.platform, "processor", lambda: "")
    monkeypatch.setattr(int8.platform, "machine", lambda: "arm64")
    assert int8.processor() == {"cpu": "arm64", "isa": "asimd"}
