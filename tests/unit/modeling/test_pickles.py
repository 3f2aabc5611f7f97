"""A pickle of PyTorch is converted or loaded, with or without a wrapper's prefix, or refused."""

import json
from pathlib import Path

import pytest
import torch

from mobilebert import modeling
from mobilebert.modeling import MobileBertConfig
from mobilebert.modeling.foreign.convert import convert
from mobilebert.util.errors import UserError


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        convert(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def pickle_of(tmp_path: Path, change) -> Path:
    """Write a small model as a pickle with changed weights; return its folder."""
    config = MobileBertConfig(vocab_size=29, hidden_size=16, embedding_size=8, intra_bottleneck_size=8, num_hidden_layers=1)
    folder = tmp_path / "pickle"
    config.save_pretrained(folder)
    torch.manual_seed(0)
    torch.save(change(modeling.MobileBertForMaskedLM(config).state_dict()), folder / "pytorch_model.bin")
    return folder


def test_half_precision_wrappers_and_position_ids_are_named(tmp_path):
    def change(weights):
        found = {f"module.{name}": value.half() for name, value in weights.items()}
        return found | {"module.mobilebert.embeddings.position_ids": torch.arange(512)[None]}

    lines = "\n".join(convert(str(pickle_of(tmp_path, change)), tmp_path / "out"))
    assert "a wrapper's prefix was taken off" in lines
    assert "module." in lines
    assert "float16 weights were converted to float32" in lines
    assert "position_ids" in lines
    model = modeling.MobileBertForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32


def test_sharded_pickles_are_read_and_a_missing_shard_is_named(tmp_path):
    folder = pickle_of(tmp_path, lambda weights: weights)
    weights = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    names = list(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for shard, inside in shards.items():
        torch.save({name: weights[name] for name in inside}, folder / shard)
    places = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    convert(str(folder), tmp_path / "out")
    assert modeling.MobileBertForMaskedLM.from_pretrained(tmp_path / "out")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin, which pytorch_model.bin.index.json names, is missing" in refused(
        str(folder), tmp_path / "again"
    )


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_pickle_saved_through_a_wrapper_loads_without_the_command(is_sharded, tmp_path, capsys):
    folder = pickle_of(tmp_path, lambda weights: {f"module.{name}": value.half() for name, value in weights.items()})
    if is_sharded:
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
        index = {"weight_map": {"module.cls.predictions.bias": "pytorch_model-00001-of-00001.bin"}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = modeling.MobileBertForMaskedLM.from_pretrained(folder)
    assert "a wrapper's prefix was taken off 61 names" in capsys.readouterr().err
    convert(str(folder), tmp_path / "out")
    wanted = modeling.MobileBertForMaskedLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


def test_a_pickle_with_code_is_refused(tmp_path):
    folder = pickle_of(tmp_path, lambda weights: weights | {"code": print})
    assert "holds more than weights" in refused(str(folder), tmp_path / "out")
