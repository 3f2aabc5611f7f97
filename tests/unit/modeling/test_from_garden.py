"""Checkpoints of TensorFlow's model garden load without it, and give the outputs that it gave.

`tests/tf/make_garden_golden.py` made the files with tf-models-official 2.20.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from family import close

from mobilebert import modeling
from mobilebert.modeling import MobileBertConfig
from mobilebert.modeling.foreign.bundle import Bundle
from mobilebert.modeling.foreign.convert import convert
from mobilebert.modeling.foreign.garden import GRAPH, Garden
from mobilebert.util.errors import UserError

GOLDEN = Path(__file__).with_name("from_garden")
MODELS = {"teacher": "ForMaskedLM", "student": "ForMaskedLM", "table-1": "Model", "tiny": "Model"}


def copy(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def refused(source: Path, *arguments) -> str:
    """Return the error of a conversion, which must write nothing."""
    out = source.parent / "out"
    with pytest.raises(UserError) as error:
        convert(str(source), out, *arguments)
    assert "\n" not in str(error.value)
    assert not out.exists()
    return str(error.value)


def golden(name: str) -> tuple[dict, dict]:
    """Return the inputs of a model, and its outputs by our names."""
    arrays = np.load(GOLDEN / name / "outputs.npz")
    inputs = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("in.")}
    outputs = {key: arrays[key] for key in arrays if not key.startswith("in.")}
    return inputs, outputs


@pytest.mark.parametrize("name", MODELS)
def test_the_garden_s_hidden_states_and_attentions_are_those_of_the_loaded_model(name, tmp_path):
    lines = convert(str(GOLDEN / name), tmp_path / "out")
    assert f"MobileBert{MODELS[name]}, " in lines[0]
    inputs, wanted = golden(name)
    for source in (tmp_path / "out", GOLDEN / name):
        model = modeling.MobileBertModel.from_pretrained(source).eval()
        with torch.no_grad():
            found = model(**inputs, output_hidden_states=True, output_attentions=True)
        states = {key: value for key, value in wanted.items() if "." in key}
        assert len(found.hidden_states) + len(found.attentions) == len(states)
        for key, state in states.items():
            kind, number = key.split(".")
            close(found[kind][int(number)], state)
        close(found.pooler_output, wanted["pooler_output"])


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_garden_s_head_gives_its_logits(name, tmp_path):
    convert(str(GOLDEN / name), tmp_path / "out")
    inputs, wanted = golden(name)
    with torch.no_grad():
        logits = modeling.MobileBertForMaskedLM.from_pretrained(tmp_path / "out").eval()(**inputs).logits
    close(logits, wanted["prediction_logits"])


def test_the_pooler_of_the_head_for_the_next_sentence_is_read_if_the_encoder_has_none(tmp_path):
    folder = copy("student", tmp_path)
    lines = "\n".join(convert(str(folder), tmp_path / "without"))
    assert "not used, because MobileBertForMaskedLM has no such weights: mobilebert.pooler.dense.bias, " in lines
    file = folder / "bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"classifier_activation": True}))
    inputs, wanted = golden("student")
    with torch.no_grad():
        found = modeling.MobileBertModel.from_pretrained(folder).eval()(**inputs)
    close(found.pooler_output, wanted["next_sentence_pooled"])


@pytest.mark.parametrize("name", MODELS)
def test_every_variable_is_a_weight_or_is_named(name, tmp_path):
    lines = "\n".join(convert(str(GOLDEN / name), tmp_path / "out")[1:])
    folder = GOLDEN / name
    bundle = Bundle(next(folder.glob("*.index")).with_suffix(""))
    left = set(bundle.variables) - {place.variable for place in Garden(bundle).places()} - {GRAPH}
    assert (not left) == (name == "table-1")
    if left:
        assert f"not used: {len(left)} variables of the training" in lines
    assert ("the pooler is kept" in lines) == (name == "teacher")


def test_a_parameter_file_of_the_garden_is_the_configuration(tmp_path):
    folder = copy("tiny", tmp_path)
    convert(str(folder), tmp_path / "beside")
    convert(str(folder / "ckpt-1"), tmp_path / "named", None, folder / "params.yaml")
    config = MobileBertConfig.from_pretrained(tmp_path / "named")
    assert (config.use_bottleneck_attention, config.num_hidden_layers, config.mask_value) == (True, 1, "min")
    text = (folder / "params.yaml").read_text()
    for old, new, wanted in (
        ("type: mobilebert", "type: bert", "no encoder of type mobilebert"),
        ("num_blocks: 1", "num_block: 1", "'num_block' is no key of the garden's MobileBERT"),
        ("num_blocks: 1", "num_blocks: !!python/name:os.system 1", "not YAML of plain values"),
        ("num_blocks: 1", "num_blocks: [1]", "line 13 holds no plain value"),
        ("num_blocks: 1", "num_blocks: one", "num_hidden_layers: 'one' is not a positive integer"),
        ("num_blocks: 1", "<<: {num_blocks: 1}", "holds no plain value"),
        ("task:", "[", "not YAML of plain values"),
    ):
        (folder / "params.yaml").write_text(text.replace(old, new))
        assert wanted in refused(folder)


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads is 4 in the configuration, but 2 in the weights"),
        ({"normalization_type": "layer_norm"}, "is 'layer_norm' in the configuration, but 'no_norm' in the weights"),
        ({"vocab_size": 30}, "word_embeddings.weight has shape (29, 8), the configuration's is (30, 8)"),
        ({"intermediate_size": 13}, "layer.0.intermediate.dense.weight has shape (12, 8), the configuration's is (13, 8)"),
        ({"num_hidden_layers": 3}, "it has no mobilebert.encoder.layer.2."),
        ({"num_hidden_layers": 1}, "the configuration has no mobilebert.encoder.layer.1."),
        ({"num_feedforward_networks": 4}, "it has no mobilebert.encoder.layer.0.ffn.2."),
        ({"use_bottleneck_attention": True}, "attention.self.value.weight has shape (8, 16), the configuration's is (8, 8)"),
    ],
)
def test_a_configuration_that_contradicts_the_garden_s_weights_is_refused(changed, wanted, tmp_path):
    folder = copy("student", tmp_path)
    file = folder / "bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert wanted in refused(folder)


def test_a_garden_checkpoint_without_a_configuration_is_refused(tmp_path):
    folder = copy("student", tmp_path)
    (folder / "bert_config.json").unlink()
    assert "no configuration beside the weights" in refused(folder)
    with pytest.raises(UserError, match="no configuration beside the weights"):
        modeling.MobileBertModel.from_pretrained(folder)
    assert "num_attention_heads is 4 in the configuration, but 2 in the weights" in refused(folder, "mobilebert")


# ---- files made to do harm


def with_graph(folder: Path, change) -> Path:
    """Change the bytes of the graph in a checkpoint's data, and take its checksum away."""
    prefix = next(folder.glob("*.index")).with_suffix("")
    bundle = Bundle(prefix)
    place = bundle.variables[GRAPH]
    data = folder / f"{prefix.name}.data-00000-of-00001"
    content = data.read_bytes()
    head = place.size - len(bundle.read_string(GRAPH))
    graph = content[place.offset + head : place.offset + place.size]
    changed = change(graph)
    assert len(changed) == len(graph)
    assert changed != graph
    data.write_bytes(content[: place.offset + head] + changed + content[place.offset + place.size :])
    return folder


def test_a_changed_byte_of_the_graph_is_found(tmp_path):
    folder = with_graph(copy("student", tmp_path), lambda graph: graph[:100] + bytes([graph[100] ^ 1]) + graph[101:])
    assert f"damaged: the checksum of {GRAPH} does not hold" in refused(folder)


ODD = [
    (b"", b"", "damaged: _CHECKPOINTABLE_OBJECT_GRAPH cannot be read"),
    (b"\x13word_embedding_proj", b"\x13word_embedding_none", "with 0 MobileBERT encoders"),
    (b"/0/_key_dense/kernel", b"/9/_key_dense/kernel", "/9/_key_dense/kernel/.ATTRIBUTES/VARIABLE_VALUE, which is not in the"),
    (b"\x0a_key_dense", b"\x0a_old_dense", "it has no mobilebert.encoder.layer.0.attention.self.key.weight"),
    (b"/_key_dense/kernel/.A", b"/_query_dense/bias/.A", "_query_dense/bias/.ATTRIBUTES/VARIABLE_VALUE is two weights"),
    (b"\x0a_key_dense", b"\x0a\xff\xffey_dense", "damaged: _CHECKPOINTABLE_OBJECT_GRAPH cannot be read"),
]


@pytest.mark.parametrize(("old", "new", "wanted"), ODD)
def test_an_odd_graph_is_refused(old, new, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(Bundle, "_check", lambda *_: None)  # of the checksums, which an attacker writes too
    folder = with_graph(copy("student", tmp_path), lambda graph: graph.replace(old, new) if old else b"\xff" * len(graph))
    assert wanted in refused(folder)


@pytest.mark.parametrize(("start", "wanted"), [(b"\xff" * 10, "is no string"), (b"\xff\xff\xff\xff\x7f", "is no string")])
def test_a_string_of_another_length_is_refused(start, wanted, tmp_path):
    folder = copy("student", tmp_path)
    place = Bundle(folder / "ckpt-1").variables[GRAPH]
    data = folder / "ckpt-1.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[place.offset : place.offset + len(start)] = start
    data.write_bytes(content)
    assert f"damaged: {GRAPH} {wanted}" in refused(folder)


def test_a_graph_of_too_many_objects_is_refused(monkeypatch):
    bundle = Bundle(GOLDEN / "tiny/ckpt-1")
    monkeypatch.setattr("mobilebert.modeling.foreign.garden.MOST_NAMES", 3)
    with pytest.raises(UserError, match="has more than 3 objects"):
        Garden(bundle)
    monkeypatch.setattr("mobilebert.modeling.foreign.bundle.LONGEST_STRING", 99)
    with pytest.raises(UserError, match="is no string of at most 99 bytes"):
        Garden(bundle)


def test_two_encoders_in_one_checkpoint_are_refused(monkeypatch):
    bundle = Bundle(GOLDEN / "tiny/ckpt-1")
    graph = bundle.read_string(GRAPH)
    monkeypatch.setattr(Bundle, "read_string", lambda *_: graph * 2)  # the second's parts are those of the first
    with pytest.raises(UserError, match="with 2 MobileBERT encoders of the model garden; only one with one encoder is read"):
        Garden(bundle)
