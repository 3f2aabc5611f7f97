"""Hostile checkpoints: none runs code, reads files elsewhere, hangs or ends in a traceback."""

import json
import math
import pickle
import random
import shutil
import time

import pandas as pd
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer, Tokenizer, models

from mobilebert import MobileBertConfig, MobileBertForSequenceClassification
from mobilebert.cli.main import main
from mobilebert.evaluation import submission
from mobilebert.evaluation.checkpoints import load_checkpoint
from mobilebert.modeling.checkpoint_files import checked
from mobilebert.modeling.loading import load
from mobilebert.stages.checkpoint import load_baseline
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError
from mobilebert.util.files import file_sha256

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat"]
SIZES = {"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96}
OURS = SIZES | {"embedding_size": 8, "hidden_size": 16, "intra_bottleneck_size": 8, "intermediate_size": 8}
DISTIL = {"vocab_size": len(WORDS), "dim": 8, "hidden_dim": 8, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 96}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return name -> a folder with a fine-tuned model of two classes."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    small = transformers.BertConfig(**SIZES, hidden_size=8, intermediate_size=8)
    for name, model in (
        ("mobilebert", MobileBertForSequenceClassification(MobileBertConfig(**OURS))),
        ("bert", transformers.BertForSequenceClassification(small)),
        ("distilbert", transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**DISTIL))),
    ):
        model.save_pretrained(root / name)
        BertWordPieceTokenizer({word: code for code, word in enumerate(WORDS)}).save(str(root / name / "tokenizer.json"))
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made["mobilebert"], tmp_path / "model")
    return tmp_path / "model"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def answer(folder):
    with checked(folder) as files:
        return load(transformers.AutoModelForSequenceClassification, files)[0]


LOADERS = {
    "evaluate, predict, submission": lambda folder: load_checkpoint(str(folder), TASKS["sst2"]),
    "a baseline": lambda folder: load_baseline(str(folder), "main"),
    "from_pretrained": MobileBertForSequenceClassification.from_pretrained,
}


def refusal(work) -> str:
    with pytest.raises(UserError) as error:
        work()
    assert "\n" not in str(error.value)
    assert "mobilebert-" not in str(error.value)  # the temporary folder
    return str(error.value)


# ---- code


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return open, (self.canary, "w")


def code_in_config(folder, canary):
    for auto in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"):
        change(folder / "config.json", auto_map={auto: "evil.Evil"})


def code_of_an_unknown_model(folder, canary):
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, model_type="evil")


def code_deep_in_config(folder, canary):
    change(folder / "config.json", text_config={"more": [{"auto_map": {"AutoConfig": "evil.Evil"}}]})


def code_in_another_configuration(folder, canary):
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    change(folder / "config.4.0.0.json", auto_map={"AutoModel": "evil.Evil"})
    change(folder / "config.json", configuration_files=["config.4.0.0.json"])


def code_of_a_pipeline(folder, canary):
    change(folder / "config.json", custom_pipelines={"text-classification": {"impl": "evil.Evil", "pt": ["AutoModel"]}})


def kernel_of_the_hub(folder, canary):
    change(folder / "config.json", attn_implementation="somebody/evil")


def kernel_under_its_private_name(folder, canary):
    change(folder / "config.json", _attn_implementation="somebody/evil")


def weights_of_another_name(folder, canary):
    change(folder / "config.json", transformers_weights="../other.safetensors")


def quantizer(folder, canary):
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def adapter(folder, canary):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}))


def pickle_as_safetensors(folder, canary):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(canary)))


def pickle_as_bin(folder, canary):
    (folder / "model.safetensors").unlink()
    torch.save({"bert.weight": Evil(canary)}, folder / "pytorch_model.bin")


def shards_outside(folder, canary):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    names = dict.fromkeys(load_file(folder.parent / "model.safetensors"), "../model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


REFUSED = {
    code_in_config: "auto_map in config.json",
    code_of_an_unknown_model: "auto_map in config.json",
    code_deep_in_config: "auto_map in config.json",
    code_in_another_configuration: "configuration_files in config.json",
    code_of_a_pipeline: "custom_pipelines in config.json",
    kernel_of_the_hub: "attn_implementation in config.json is 'somebody/evil'",
    kernel_under_its_private_name: "_attn_implementation in config.json is 'somebody/evil'",
    weights_of_another_name: "transformers_weights in config.json",
    quantizer: "quantization_config (gptq) in config.json",
    adapter: "adapter_config.json: an adapter",
    pickle_as_safetensors: "no safetensors file that can be read",
    pickle_as_bin: "pickle",
    shards_outside: "names '../model.safetensors'",
}


@pytest.mark.parametrize("plant", REFUSED, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_checkpoints_own_code_is_refused_and_never_asked_about(plant, loader, folder, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: (canary.write_text("asked"), "y")[1])
    plant(folder, canary)
    assert REFUSED[plant] in refusal(lambda: LOADERS[loader](folder))
    assert not canary.exists()


def test_a_tokenizers_code_is_refused(folder, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    for values in ({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, {"auto_map": ["evil.Evil", None]}):
        (folder / "tokenizer_config.json").write_text(json.dumps(values | {"tokenizer_class": "Evil"}))
        assert "auto_map in tokenizer_config.json" in refusal(lambda: load_checkpoint(str(folder), TASKS["sst2"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "evil.Evil"}))
    load_checkpoint(str(folder), TASKS["sst2"])  # a class unknown to transformers is not looked up in the folder
    assert not canary.exists()


def test_other_files_of_a_folder_are_never_opened(folder, tmp_path):
    canary = tmp_path / "canary"
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "rng_state.pth", ".metadata"):
        (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    for loader in LOADERS.values():
        loader(folder)
    assert not canary.exists()


def test_a_linked_file_is_read_as_data(folder, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "elsewhere").write_bytes(pickle.dumps(Evil(canary)))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    for loader in LOADERS.values():
        assert "no safetensors file that can be read" in refusal(lambda loader=loader: loader(folder))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "nowhere")
    for loader in LOADERS.values():
        assert refusal(lambda loader=loader: loader(folder))
    assert not canary.exists()


def test_a_hubs_pickle_is_read_for_its_weights_alone(made, tmp_path, monkeypatch):
    hub, canary = tmp_path / "hub", tmp_path / "canary"
    shutil.copytree(made["distilbert"], hub)
    weights = load_file(hub / "model.safetensors")
    (hub / "model.safetensors").unlink()

    def cached_file(source, name, revision):
        if not (hub / name).exists():
            raise OSError(f"{source} has no {name}")
        return str(hub / name)

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    torch.save(weights, hub / "pytorch_model.bin")
    found = load_baseline("some/body", "main").state_dict()
    assert all(torch.equal(value, weights[f"distilbert.{name}"]) for name, value in found.items())
    for content in ({"distilbert.weight": Evil(canary)}, [1], {"a": 1}):
        torch.save(content, hub / "pytorch_model.bin")
        assert refusal(lambda: load_baseline("some/body", "main")).startswith("some/body: pytorch_model.bin ")
    assert not canary.exists()


def test_the_commands_and_the_stage_refuse_in_one_line(folder, tmp_path, capsys, monkeypatch):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    code_in_config(folder, None)
    sha256 = file_sha256(folder / "model.safetensors")
    study = {"schema": 1, "description": "x", "device": "cpu", "data": {"source": "synthetic", "vocab_size": 600}}
    study |= {"checkpoints": {"mine": {"source": str(folder), "sha256": sha256}}, "run": {"mine": ["sst2"]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    rows = pd.DataFrame({"sentence": ["red cat"], "label": [1], "idx": [0]})
    rows.to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setattr(submission, "is_whole", lambda *_: True)
    monkeypatch.setattr(submission.input_rows, "read_table", lambda *_: rows)
    nine = [f"{task}={folder}" for task in submission.LEADERBOARD]
    for command in (
        ["predict", folder, "--task", "sst2", "--text", "red"],
        ["evaluate", folder, "--task", "sst2", "--data", tmp_path / "rows.parquet"],
        ["submission", *nine, "--data", tmp_path, "--out", tmp_path / "z.zip"],
        ["checkpoint", "mine", "--study", tmp_path / "mine.yaml", "--results", tmp_path / "results"],
    ):
        assert main([*map(str, command), "--threads", "1"]) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("mobilebert:")]
        assert "auto_map in config.json: names Python code" in line
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "z.zip").exists()
    assert not (tmp_path / "results/mine/checkpoint/mine/model").exists()


# ---- types and names of weights


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


# ---- sizes


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


# ---- files


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
