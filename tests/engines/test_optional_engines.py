"""The optional engines run tiny models as PyTorch does; `make test-engines` installs them."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from mobilebert.cli.main import main
from mobilebert.deployment import latency
from mobilebert.deployment.engines import programs
from mobilebert.deployment.engines.table import ENGINES, int8_flops, int8_share
from mobilebert.modeling import MobileBertConfig, MobileBertModel
from mobilebert.modeling.cost import cost
from mobilebert.util.errors import UserError

LENGTH = 16
SIZES = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BODIES = {
    "mobilebert": lambda: MobileBertModel(MobileBertConfig(embedding_size=32, intra_bottleneck_size=32, **SIZES)),
    "bert": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),
}


@pytest.fixture(params=BODIES)
def model(request):
    torch.manual_seed(0)
    return BODIES[request.param]().eval()


@pytest.fixture
def rows():
    draw = np.random.default_rng(0)
    ids = draw.integers(99, size=(4, 1, LENGTH))
    ones = np.ones((1, LENGTH), np.int64)
    return [{"input_ids": row, "attention_mask": ones, "token_type_ids": 0 * ones} for row in ids]


def loaded(name, model, rows, folder):
    """Return an engine with the model, its files written to a folder."""
    engine = ENGINES[name]
    path = folder / engine.file
    if engine.made_from:
        loaded(engine.made_from, model, rows, folder)
    if engine.file and not path.exists():
        programs.write(engine, folder / ENGINES[engine.made_from].file if engine.made_from else model, path, rows)
    return programs.load(engine, path if engine.file else model, 1)


def error(name, model, rows, folder):
    found = loaded(name, model, rows, folder)(rows[0])["last_hidden_state"]
    return latency.relative_error(found, loaded("pytorch", model, rows, folder)(rows[0])["last_hidden_state"])


# --- OpenVINO


def test_openvino_gives_pytorchs_output_in_float32(model, rows, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    assert error("openvino", model, rows, tmp_path) < 1e-5


def test_openvino_fixed_compiles_the_model_for_the_shape_of_each_input(model, rows, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    free, fixed, torchs = (loaded(name, model, rows, tmp_path) for name in ("openvino", "openvino-fixed", "pytorch"))
    for batch in (rows[0], {name: np.repeat(array[:, :9], 2, axis=0) for name, array in rows[0].items()}):
        found, wanted = (one(batch)["last_hidden_state"] for one in (fixed, torchs))
        assert latency.relative_error(found, wanted) < 1e-5
    # Not the count of kernels: OpenVINO says of one that takes less than 1 us that it did not run.
    of_free, of_fixed = ({node.get_rt_info()["layerType"].value for node in nodes(one)} for one in (free, fixed))
    assert "ShapeOf" in of_free
    assert "ShapeOf" not in of_fixed
    assert (free.ran_with["shapes"], fixed.ran_with["shapes"]) == ("free", "fixed")


def nodes(one):
    """Return the nodes of an OpenVINO engine's compiled graph."""
    return next(iter(one._requests.values())).get_compiled_model().get_runtime_model().get_ordered_ops()


@pytest.mark.parametrize("name", ["openvino", "openvino-fixed"])
def test_openvino_names_a_batch_it_cannot_take_and_the_threads_it_has(name, model, rows, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    path = tmp_path / "model.onnx"
    programs.write(ENGINES[name], model, path, rows)
    found = programs.load(ENGINES[name], path, 4096)
    found(rows[0])
    assert 1 <= found.ran_with["threads"] < 4096
    with pytest.raises(UserError, match="needs the input input_ids; given are attention_mask"):
        found({"attention_mask": rows[0]["attention_mask"]})


def test_openvino_fixed_names_the_shape_that_it_cannot_compile(model, rows, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    tokens = model.config.max_position_embeddings + 1
    long = {key: np.ones((1, tokens), np.int64) for key in rows[0]}
    with pytest.raises(UserError, match=rf"model.onnx: OpenVINO cannot compile it for inputs of \(1, {tokens}\)"):
        loaded("openvino-fixed", model, rows, tmp_path)(long)


def test_openvino_runs_nncfs_int8_kernels(model, rows, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed: make test-engines")
    assert 1e-5 < error("openvino-int8", model, rows, tmp_path) < 0.1
    kernels = loaded("openvino-int8", model, rows, tmp_path).kernels(rows[0])
    flops = cost(model.config.to_dict(), LENGTH).encoder_flops
    assert int8_share(int8_flops(kernels), flops) > 0.9
    assert all(kernel.us is not None for kernel in kernels)


def test_openvino_without_rows_to_calibrate_on_is_refused(model, rows, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed: make test-engines")
    loaded("onnxruntime", model, rows, tmp_path)
    for name in ("openvino-int8", "onnxruntime-static"):
        with pytest.raises(UserError, match="no rows to calibrate on"):
            programs.write(ENGINES[name], tmp_path / "model.onnx", tmp_path / ENGINES[name].file, [])


def test_bfloat16_is_refused_where_the_processor_has_none(model, rows, tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 1e-4 < error("openvino-bf16", model, rows, tmp_path) < 0.05
    else:
        with pytest.raises(UserError, match="openvino-bf16: this processor has no bfloat16"):
            loaded("openvino-bf16", model, rows, tmp_path)


def test_a_file_that_openvino_cannot_read_is_refused_in_one_line(tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="OpenVINO cannot read it"):
        programs.load(ENGINES["openvino"], tmp_path / "model.onnx", 1)


# --- LiteRT


@pytest.fixture
def tflite(tmp_path):
    """Return a .tflite file made by hand, and the table from which it looks up its output."""
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: make test-engines")
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    table = np.random.default_rng(1).standard_normal((99, 8)).astype(np.float32)

    def tensor(name, shape, kind, buffer=0):
        one = schema.TensorT()
        one.name, one.shape, one.type, one.buffer = name, list(shape), kind, buffer
        return one

    def buffer(data=None):
        one = schema.BufferT()
        one.data = data
        return one

    kinds, gather = schema.TensorType, schema.BuiltinOperator.GATHER
    operator, code, graph, whole = schema.OperatorT(), schema.OperatorCodeT(), schema.SubGraphT(), schema.ModelT()
    operator.inputs, operator.outputs = [1, 0], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.GatherOptions, schema.GatherOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = gather
    graph.tensors = [
        tensor("serving_input_ids:0", (1, LENGTH), kinds.INT32),
        tensor("table", table.shape, kinds.FLOAT32, 1),
        tensor("Identity", (1, LENGTH, 8), kinds.FLOAT32),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    whole.version, whole.operatorCodes, whole.subgraphs = 3, [code], [graph]
    whole.buffers = [buffer(), buffer(np.frombuffer(table.tobytes(), np.uint8))]
    builder = Builder(1024)
    builder.Finish(whole.Pack(builder), b"TFL3")
    path = tmp_path / "model.tflite"
    path.write_bytes(builder.Output())
    return path, table


def test_litert_runs_a_file_and_reads_its_output(tflite, rows):
    path, table = tflite
    found = programs.load(ENGINES["litert"], path, 1)
    assert np.array_equal(found(rows[0])["last_hidden_state"], table[rows[0]["input_ids"]])
    assert [kernel.op for kernel in found.kernels(rows[0])] == ["GATHER"]
    assert found.bytes == path.stat().st_size


def test_litert_refuses_another_length_and_another_file_in_one_line(tflite, rows, tmp_path):
    path, _ = tflite
    shorter = {name: row[:, :8] for name, row in rows[0].items()}
    with pytest.raises(UserError, match=f"is made for 1 x {LENGTH} tokens, not 1 x 8"):
        programs.load(ENGINES["litert"], path, 1)(shorter)
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model.tflite: no .tflite file that LiteRT can run"):
        programs.load(ENGINES["litert"], path, 1)
    with pytest.raises(UserError, match="no such file"):
        programs.load(ENGINES["litert"], tmp_path / "other.tflite", 1)


def test_the_program_times_a_tflite_file(tflite, capsys):
    code = main(["latency", str(tflite[0]), "--length", str(LENGTH), "--rounds", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    (model,) = found["models"].values()
    assert code == (0 if found["validity"] == "ok" else 1)
    assert (model["engine"], model["error"], model["operators"]) == ("litert", None, 1)
    assert len(model["samples_ms"]) == 3


# --- any engine, a user's checkpoint


def test_a_checkpoint_of_another_family_is_timed_on_every_engine_here(tmp_path, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed: make test-engines")
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=99, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=32)
    DistilBertModel(config).save_pretrained(tmp_path)
    engines = ["pytorch", "onnxruntime", "onnxruntime-int8", "openvino"]
    main(["latency", str(tmp_path), "--engine", *engines, "--length", "16", "--rounds", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    for engine in engines:
        model = found["models"][f"{tmp_path}/{engine}"]
        assert model["error"] < (0.1 if "int8" in engine else 1e-5)
        # A layer has six products with weights, and attention's own two.
        assert model["flops"] == 2 * 2 * 16 * (4 * 32 * 32 + 2 * 32 * 64 + 2 * 16 * 32)
    assert main(["latency", str(tmp_path), "--engine", "litert", "--length", "16"]) == 2
    refusal = (
        "DistilBertModel has no Keras class here" if find_spec("tensorflow") else "needs a .tflite file; put model.tflite in"
    )
    assert f"litert: {refusal}" in capsys.readouterr().err
    assert main(["latency", str(tmp_path), "--length", "64"]) == 2
    assert "length: 64 is not from 2 to 32, the model's max_position_embeddings" in capsys.readouterr().err
