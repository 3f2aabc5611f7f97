"""Checkpoints that TensorFlow wrote load without it, and give the outputs that it gave.

`tests/tf/make_golden.py` made the files with transformers 4 and TensorFlow 2.19.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from family import close
from safetensors.numpy import load_file

from mobilebert import modeling
from mobilebert.cli.main import main
from mobilebert.modeling import MobileBertConfig
from mobilebert.modeling.foreign.bundle import FOOTER, TRAILER, _varint
from mobilebert.modeling.foreign.convert import convert
from mobilebert.modeling.foreign.names import from_google
from mobilebert.util.errors import UserError

GOLDEN = Path(__file__).with_name("from_tensorflow")
H5 = {
    "pretraining": "MobileBertForPreTraining",
    "classification": "MobileBertForSequenceClassification",
    "answers": "MobileBertForQuestionAnswering",
    "encoder": "MobileBertModel",
    "next-sentence": "MobileBertForNextSentencePrediction",
    "masked": "MobileBertForMaskedLM",
    "choices": "MobileBertForMultipleChoice",
    "tokens": "MobileBertForTokenClassification",
}
STUDENT, DATA = "google-student", "mobilebert_variables.ckpt.data-00000-of-00001"
CHECKPOINT = "mobilebert_variables.ckpt.index"


def copy(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        convert(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- tf_model.h5


@pytest.mark.parametrize("name", H5)
def test_an_h5_file_gives_the_outputs_of_transformers_tensorflow_class(name, tmp_path):
    pytest.importorskip("h5py")
    lines = convert(str(GOLDEN / name), tmp_path / "out")
    assert H5[name] in lines[0]
    arrays = np.load(GOLDEN / name / "outputs.npz")
    inputs = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("in.")}
    wanted: dict[str, list] = {}
    for key in (key for key in arrays if key.startswith("out.")):
        wanted.setdefault(key.split(".")[1], []).append(arrays[key])
    for source in (tmp_path / "out", GOLDEN / name):
        model = getattr(modeling, H5[name]).from_pretrained(source).eval()
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        assert set(outputs) == set(wanted)
        for key, parts in wanted.items():
            ours = outputs[key] if isinstance(outputs[key], tuple) else [outputs[key]]
            for mine, peer in zip(ours, parts, strict=True):
                close(mine, peer)


def test_a_converted_model_loads_into_transformers_class(tmp_path):
    pytest.importorskip("h5py")
    import transformers

    convert(str(GOLDEN / "pretraining"), tmp_path / "out")
    theirs = transformers.MobileBertForPreTraining.from_pretrained(tmp_path / "out").eval()
    arrays = np.load(GOLDEN / "pretraining/outputs.npz")
    with torch.no_grad():
        outputs = theirs(**{key[3:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("in.")})
    close(outputs.seq_relationship_logits, arrays["out.seq_relationship_logits.0"])


def test_safetensors_of_keras_are_the_weights_of_the_h5_file(tmp_path):
    pytest.importorskip("h5py")
    convert(str(GOLDEN / "encoder"), tmp_path / "h5")
    convert(str(GOLDEN / "encoder-safetensors"), tmp_path / "safetensors")
    wanted, found = (load_file(tmp_path / kind / "model.safetensors") for kind in ("h5", "safetensors"))
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_safetensors_of_keras_load_without_the_command():
    pytest.importorskip("h5py")
    wanted, found = (modeling.MobileBertModel.from_pretrained(GOLDEN / name) for name in ("encoder", "encoder-safetensors"))
    assert all(torch.equal(one, other) for one, other in zip(wanted.parameters(), found.parameters(), strict=True))


def test_safetensors_of_half_precision_are_rewritten(tmp_path):
    config = MobileBertConfig(vocab_size=29, hidden_size=16, embedding_size=8, intra_bottleneck_size=8, num_hidden_layers=1)
    modeling.MobileBertForMaskedLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="20KB")
    assert (tmp_path / "half/model.safetensors.index.json").is_file()
    lines = convert(str(tmp_path / "half"), tmp_path / "out")
    assert "MobileBertForMaskedLM" in lines[0]
    assert "bfloat16 weights were converted to float32" in lines[1]
    assert load_file(tmp_path / "out/model.safetensors")["cls.predictions.bias"].dtype == np.float32


def test_lists_of_names_that_keras_split_are_read_whole(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = copy("encoder", tmp_path)
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        group = file["mobilebert"]
        names = list(group.attrs["weight_names"])
        del group.attrs["weight_names"]
        group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:5], names[5:]
    convert(str(folder), tmp_path / "split")
    convert(str(GOLDEN / "encoder"), tmp_path / "whole")
    assert (tmp_path / "split/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_a_damaged_or_foreign_h5_file_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = copy("encoder", tmp_path)
    file = folder / "tf_model.h5"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "tf_model.h5: truncated, or no HDF5 file" in refused(str(folder), tmp_path / "out")
    file.write_text("<html>")
    assert "truncated, or no HDF5 file" in refused(str(folder), tmp_path / "out")
    with h5py.File(file, "w") as stream:
        stream["weights"] = np.zeros(3)
    assert "holds no weights that transformers' TensorFlow classes wrote" in refused(str(folder), tmp_path / "out")
    with h5py.File(file, "w") as stream:
        stream.attrs["layer_names"] = ["bert"]
        stream.create_group("bert").attrs["weight_names"] = ["tf_bert_model/bert/pooler/dense/bias:0"]
        stream["bert/tf_bert_model/bert/pooler/dense/bias:0"] = np.zeros(3, np.float32)
    assert "no weights of MobileBERT; its first is" in refused(str(folder), tmp_path / "out")
    file.write_bytes(content)
    with h5py.File(file, "r+") as stream:
        names = list(stream["mobilebert"].attrs["weight_names"])
        stream["mobilebert"].attrs["weight_names"] = names[:-4]
    assert "it has no" in refused(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Google's checkpoint


def test_google_s_checkpoint_is_read_as_transformers_reads_it(tmp_path):
    lines = convert(str(GOLDEN / STUDENT), tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out/model.safetensors"), load_file(GOLDEN / STUDENT / "by-transformers.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert "not used: 3 variables of the training" in lines[1]
    assert modeling.MobileBertForPreTraining.from_pretrained(tmp_path / "out").config.hidden_act == "relu"


@pytest.mark.parametrize("name", [CHECKPOINT, CHECKPOINT.removesuffix(".index")])
def test_google_s_checkpoint_may_be_named_by_its_files(name, tmp_path):
    convert(str(GOLDEN / STUDENT / name), tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


def test_google_s_teacher_keeps_its_architecture(tmp_path):
    convert(str(GOLDEN / "google-teacher"), tmp_path / "out")
    config = MobileBertConfig.from_pretrained(tmp_path / "out")
    switches = ("use_bottleneck", "key_query_shared_bottleneck", "use_bottleneck_attention", "normalization_type")
    teacher = MobileBertConfig.from_preset("ib-bert-large")
    for key in (*switches, "hidden_act", "num_feedforward_networks", "trigram_input", "classifier_activation"):
        assert getattr(config, key) == getattr(teacher, key), key
    model = modeling.MobileBertForPreTraining.from_pretrained(tmp_path / "out")
    assert model(torch.ones(1, 3, dtype=torch.long)).prediction_logits.isfinite().all()


SHARED = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_size": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 24,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "embedding_size": 128,
    "trigram_input": True,
    "use_bottleneck": True,
}
OPT = {"hidden_dropout_prob": 0.0, "intermediate_size": 512, "intra_bottleneck_size": 128, "normalization_type": "no_norm"}
OPT |= {"hidden_act": "relu", "classifier_activation": False}
OF_GOOGLE = {  # the files in google-research/mobilebert/config, by the preset that they describe
    "ib-bert-large": {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "intermediate_size": 4096, "intra_bottleneck_size": 1024},
    "mobilebert": OPT | {"key_query_shared_bottleneck": True, "num_feedforward_networks": 4},
    "mobilebert-tiny": OPT | {"use_bottleneck_attention": True, "num_feedforward_networks": 2},
}


@pytest.mark.parametrize("preset", OF_GOOGLE)
def test_google_s_json_gives_the_preset_and_not_transformers_defaults(preset, tmp_path):
    file = tmp_path / "bert_config.json"
    file.write_text(json.dumps(SHARED | OF_GOOGLE[preset]))
    assert MobileBertConfig.from_json_file(file).to_dict() == MobileBertConfig.from_preset(preset).to_dict()


def test_a_json_file_of_ours_is_read_as_it_is(tmp_path):
    config = MobileBertConfig(num_hidden_layers=3)
    config.save_pretrained(tmp_path)
    assert MobileBertConfig.from_json_file(tmp_path / "config.json").num_hidden_layers == 3


def test_an_unknown_key_of_google_s_json_is_named(tmp_path):
    file = tmp_path / "bert_config.json"
    file.write_text(json.dumps(SHARED | {"num_feedforward_network": 4}))
    with pytest.raises(UserError, match="'num_feedforward_network' is no key of google-research/mobilebert"):
        MobileBertConfig.from_json_file(file)


def test_heads_of_google_s_fine_tuning_programs_have_a_place():
    assert from_google("output_weights") == ("classifier.weight", False)
    assert from_google("cls/squad/output_bias") == ("qa_outputs.bias", False)
    assert from_google("bert/encoder/layer_11/ffn_layer_2/output/FakeLayerNorm/gamma") == (
        "mobilebert.encoder.layer.11.ffn.2.output.LayerNorm.weight",
        False,
    )
    assert from_google("vgg/conv1/kernel") is None


def test_a_damaged_checkpoint_of_google_is_refused(tmp_path):
    folder = copy(STUDENT, tmp_path)
    index, data = folder / CHECKPOINT, folder / DATA
    content, values = bytearray(index.read_bytes()), data.read_bytes()
    data.write_bytes(values[:-8])
    assert "too short: " in refused(str(folder), tmp_path / "out")
    data.unlink()
    assert f"{DATA}: missing" in refused(str(folder), tmp_path / "out")
    changed = content.copy()
    changed[40] ^= 1
    index.write_bytes(changed)
    assert "a checksum does not hold" in refused(str(folder), tmp_path / "out")
    index.write_bytes(content[:-20])
    assert "damaged, or no index of a TensorFlow checkpoint" in refused(str(folder), tmp_path / "out")
    changed = content.copy()
    end, _ = _varint(bytes(content[-FOOTER:]), 0)  # the table of metadata begins behind the only block
    changed[end - TRAILER] = 1
    index.write_bytes(changed)
    assert "compressed with Snappy" in refused(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused(tmp_path):
    folder = copy(STUDENT, tmp_path)
    assert "it has no mobilebert.encoder.layer.0.ffn.1." in refused(str(folder), tmp_path / "out", "mobilebert")
    config = json.loads((folder / "bert_config.json").read_text())
    (folder / "bert_config.json").write_text(json.dumps(config | {"vocab_size": 30}))
    assert "word_embeddings.weight has shape (29, 8), the configuration's is (30, 8)" in refused(str(folder), tmp_path / "out")
    (folder / "bert_config.json").write_text(json.dumps(config | {"normalization_type": "layer_norm"}))
    assert "is 'layer_norm' in the configuration, but 'no_norm' in the weights" in refused(str(folder), tmp_path / "out")
    (folder / "bert_config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "it has no mobilebert.encoder.layer.2." in refused(str(folder), tmp_path / "out")
    (folder / "bert_config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "the configuration has no mobilebert.encoder.layer.1." in refused(str(folder), tmp_path / "out")
    (folder / "bert_config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**6}))
    assert "num_hidden_layers is 1000000 in config.json, but there are only" in refused(str(folder), tmp_path / "out")
    (folder / "bert_config.json").unlink()
    assert "--preset or --config" in refused(str(folder), tmp_path / "out")
    convert(str(folder), tmp_path / "out", None, GOLDEN / STUDENT / "bert_config.json")
    assert "is there already" in refused(str(folder), tmp_path / "out")


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mobilebert: ")
    assert error.count("\n") == 1


def test_a_file_that_is_not_read_by_itself_is_refused_with_what_to_name(tmp_path):
    folder = copy(STUDENT, tmp_path)
    for name in (DATA, "by-transformers.safetensors", "bert_config.json"):
        assert f"{name}: no file that is read by itself; name the folder" in refused(str(folder / name), tmp_path / "out")
    assert f"{folder}: is a folder, not a file" in refused(str(folder), tmp_path / "out", None, folder)


# ---- without TensorFlow


def test_a_missing_tensorflow_is_named_with_its_extra(monkeypatch):
    from mobilebert import tf

    for module in [module for module in sys.modules if module.startswith("mobilebert.tf.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.delitem(vars(tf), "TFMobileBertModel", raising=False)
    with pytest.raises(UserError, match=r"keras is not installed; it comes with: pip install '\.\[tensorflow\]'"):
        tf.TFMobileBertModel  # noqa: B018  (the access imports it)
