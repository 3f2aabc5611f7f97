"""Checkpoints with other types, names, sizes or files than a model needs."""

import json
import math
import random
import shutil
import time

import pytest
import torch
import transformers
from checkpoint_folders import LOADERS, WORDS, change, refusal
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer, Tokenizer, models

from mobilebert import MobileBertConfig, MobileBertForSequenceClassification
from mobilebert.evaluation.checkpoints import load_checkpoint
from mobilebert.modeling.checkpoint_files import checked
from mobilebert.modeling.loading import load
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError


def answer(folder):
    with checked(folder) as files:
        return load(transformers.AutoModelForSequenceClassification, files)[0]


@pytest.mark.parametrize("name", ["mobilebert", "bert", "distilbert"])
@pytest.mark.parametrize("type_", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_loaded_as_float32_and_said(name, type_, made, tmp_path, capsys):
    shutil.copytree(made[name], tmp_path / "model")
    weights = {key: value.to(type_) for key, value in load_file(made[name] / "model.safetensors").items()}
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    change(tmp_path / "model/config.json", dtype=str(type_).removeprefix("torch."))
    model = answer(tmp_path / "model")
    assert all(torch.equal(value, weights[key].float()) for key, value in model.state_dict().items() if key in weights)
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert model.config.dtype == torch.float32
    word = str(type_).removeprefix("torch.")
    assert capsys.readouterr().err.splitlines()[-1] == f"mobilebert: {tmp_path}/model: {word} weights are loaded as float32"


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("type_", [torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn])
def test_integer_weights_are_refused_by_name(type_, loader, folder):
    weights = load_file(folder / "model.safetensors")
    name = "mobilebert.encoder.layer.1.output.dense.weight"
    save_file({**weights, name: weights[name].to(type_)}, folder / "model.safetensors", {"format": "pt"})
    assert f"{name} has type " in refusal(lambda: LOADERS[loader](folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["mobilebert", "bert", "distilbert"])
def test_a_wrappers_prefix_is_taken_off_and_said(name, prefix, made, tmp_path, capsys):
    shutil.copytree(made[name], tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    inner = {key.replace(".layer.1.", ".layer.1._orig_mod."): value for key, value in weights.items()}
    save_file({prefix + key: value for key, value in inner.items()}, file, {"format": "pt"})
    capsys.readouterr()
    model = answer(file.parent)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"mobilebert: {tmp_path}/model: saved through a wrapper: ")
    assert said.endswith(f" taken off the names of {len(weights)} weights")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if key in weights)
    if name == "mobilebert":
        again = MobileBertForSequenceClassification.from_pretrained(file.parent)
        assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items())
        again.save_pretrained(tmp_path / "again")
        assert load_file(tmp_path / "again/model.safetensors").keys() == weights.keys()
    key = next(iter(weights))
    save_file({key: weights[key], prefix + key: weights[key].clone()}, file, {"format": "pt"})
    assert "with and without a wrapper's prefix" in refusal(lambda: answer(file.parent))


@pytest.mark.parametrize("name", ["mobilebert", "bert", "distilbert"])
@pytest.mark.parametrize("layers", [1, 3, 1_000_000])
def test_a_depth_other_than_the_files_is_refused(name, layers, made, tmp_path):
    shutil.copytree(made[name], tmp_path / "model")
    change(tmp_path / "model/config.json", **{"n_layers" if name == "distilbert" else "num_hidden_layers": layers})
    loaders = list(LOADERS.values()) if name == "mobilebert" else list(LOADERS.values())[:2]
    for loader in loaders:
        start = time.monotonic()
        line = refusal(lambda loader=loader: loader(tmp_path / "model"))
        assert {1: "the model has no ", 3: "it has no ", 1_000_000: "1000000"}[layers] in line
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", ["mobilebert", "bert", "distilbert"])
def test_sizes_other_than_the_weights_are_named_by_tensor_and_folder(name, made, tmp_path):
    """The line names tensor, shapes and folder, but no Python argument: a command has none."""
    key = "hidden_dim" if name == "distilbert" else "intermediate_size"
    shutil.copytree(made[name], tmp_path / "model")
    change(tmp_path / "model/config.json", **{key: 12})
    for loader in LOADERS.values() if name == "mobilebert" else list(LOADERS.values())[:2]:
        line = refusal(lambda loader=loader: loader(tmp_path / "model"))
        assert line.startswith(f"{tmp_path / 'model'}: ")
        assert "has shape (8" in line
        assert "the model's is (12" in line
        assert "=True" not in line


@pytest.mark.parametrize("loader", [*LOADERS.values(), MobileBertConfig.from_pretrained])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 4}, "embedding_size: 8 is larger than hidden_size, 4"),  # a BERT under our type
        ({"hidden_act": "swish"}, "hidden_act: 'swish' is unknown"),
        ({"num_attention_heads": 3}, "num_attention_heads: 3 does not divide"),
    ],
)
def test_values_that_make_no_model_are_refused_by_folder_and_key(loader, values, message, folder):
    change(folder / "config.json", **values)
    assert refusal(lambda: loader(folder)).startswith(f"{folder}: {message}")


VALUES = [
    -1, 0, 1, 3, 1.5, 10**6, 10**9, 10**12, 2**63, 1e308, math.inf, math.nan, True, None, "", "7", "banana", "float16",
    [], [1], {}, {"a": 1}, {"0": "LABEL_0"},
]  # fmt: skip


@pytest.mark.parametrize("name", ["mobilebert", "bert", "distilbert"])
def test_no_value_of_a_configuration_is_a_traceback_or_a_hang(name, made, tmp_path):
    """Keys get values drawn with a seed: loaded, or refused in one line, within seconds."""
    draw, copy = random.Random(5), tmp_path / "model"
    shutil.copytree(made[name], copy)
    values = json.loads((copy / "config.json").read_text())
    keys = [*values, "id2label", "label2id", "num_labels", "torch_dtype", "is_decoder", "return_dict", "output_attentions"]
    keys += ["chunk_size_feed_forward", "pruned_heads", "problem_type", "use_cache", "to_dict", "__class__", "attribute_map"]
    refused = 0
    for key in keys:
        for value in draw.sample(VALUES, 2):
            (copy / "config.json").write_text(json.dumps(values | {key: value}))
            loader, start = draw.choice(list(LOADERS.values())[: 3 if name == "mobilebert" else 2]), time.monotonic()
            line = ""
            try:
                loader(copy)
            except UserError as error:
                line = str(error)
                refused += 1
            assert "\n" not in line, (key, value)
            assert time.monotonic() - start < 5, (key, value)
    assert refused > len(keys) // 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json is not JSON"),
        (b"[]", "config.json holds no JSON object"),
        (b"{", "config.json is not JSON"),
        (b'{"model_type": "mobilebert", "hidden_size": NaN}', "NaN is no JSON number"),
        (b"\xff\xfe{}", "config.json is not UTF-8"),
        (b'{"a": ' * 100_000, "config.json is not JSON"),
        (b"{}", ""),
        (b'{"model_type": "nonesuch"}', ""),
        (b'{"model_type": 3}', ""),
        (b'{"model_type": "bert", "hidden_size": 8}', ""),
    ],
)
@pytest.mark.parametrize("loader", LOADERS)
def test_an_invalid_configuration_is_refused(content, message, loader, folder):
    (folder / "config.json").write_bytes(content)
    assert message in refusal(lambda: LOADERS[loader](folder))


def test_broken_files_of_weights_are_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for content in (
        b"",
        whole[:7],
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"more",
        (header + 1).to_bytes(8, "little") + whole[8:],
        (2**40).to_bytes(8, "little") + whole[8:],
        whole[:8] + bytes([whole[8] ^ 1]) + whole[9:],
    ):
        file.write_bytes(content)
        for loader in LOADERS.values():
            assert "no safetensors file that can be read" in refusal(lambda loader=loader: loader(folder))
    save_file({}, file)
    for loader in LOADERS.values():
        assert "holds no weights" in refusal(lambda loader=loader: loader(folder))
    file.unlink()
    file.mkdir()
    for loader in LOADERS.values():
        assert "model.safetensors is a folder" in refusal(lambda loader=loader: loader(folder))


def shard(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    weights = load_file(folder / "model.safetensors")
    keys = sorted(weights)
    halves = [dict.fromkeys(keys[: len(keys) // 2], names[0]), dict.fromkeys(keys[len(keys) // 2 :], names[1])]
    for half, name in zip(halves, names):
        save_file({key: weights[key] for key in half}, folder / name, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": halves[0] | halves[1]}))
    return weights


def test_weights_in_several_files_are_read_whole_or_refused(folder):
    weights = shard(folder)
    assert all(torch.equal(value, weights[key]) for key, value in answer(folder).state_dict().items())
    (folder / "model-00002-of-00002.safetensors").unlink()
    for loader in LOADERS.values():
        assert "model-00002-of-00002.safetensors, which model.safetensors.index.json names, is missing" in refusal(
            lambda loader=loader: loader(folder)
        )
    for content in ("{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "/etc/passwd"}}', "{"):
        (folder / "model.safetensors.index.json").write_text(content)
        for loader in LOADERS.values():
            assert "model.safetensors.index.json" in refusal(lambda loader=loader: loader(folder))


def test_another_tokenizer_is_refused(folder):
    Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
    assert "the tokenizer has no [PAD]" in refusal(lambda: load_checkpoint(str(folder), TASKS["sst2"]))
    BertWordPieceTokenizer({word: code for code, word in enumerate([*WORDS, "more"])}).save(str(folder / "tokenizer.json"))
    assert "the tokenizer has 8 tokens, the model 7" in refusal(lambda: load_checkpoint(str(folder), TASKS["sst2"]))
    for content in (b"", b"[]", b"\xff", b"{}"):
        (folder / "tokenizer.json").write_bytes(content)
        refusal(lambda: load_checkpoint(str(folder), TASKS["sst2"]))
