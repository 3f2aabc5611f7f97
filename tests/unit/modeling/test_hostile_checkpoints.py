"""Hostile checkpoints: none runs code, reads files elsewhere or ends in a traceback."""

import json
import pickle
import shutil

import pandas as pd
import pytest
import torch
import yaml
from checkpoint_folders import LOADERS, WORDS, change, refusal
from safetensors.torch import load_file

from mobilebert.cli.main import main
from mobilebert.evaluation import submission
from mobilebert.evaluation.checkpoints import load_checkpoint
from mobilebert.stages.checkpoint import load_baseline
from mobilebert.study.tasks import TASKS
from mobilebert.util.files import file_sha256


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
