"""Presets and configurations: their values, and refusals in one line."""

import json

import pytest
import transformers

from mobilebert import MobileBertConfig, paper
from mobilebert.modeling.presets import names, preset
from mobilebert.util.errors import UserError


def test_defaults_are_those_of_transformers():
    ours, theirs = MobileBertConfig().to_dict(), transformers.MobileBertConfig().to_dict()
    assert ours.pop("residual_init_scale") == 1.0
    assert ours.pop("mask_value") == "min"
    theirs.pop("true_hidden_size")
    assert ours == theirs


@pytest.mark.parametrize("name", [n for n in names() if "mobilebert" in n or "ib-" in n])
def test_presets_become_configurations(name):
    config = MobileBertConfig.from_preset(name, num_labels=5)
    assert config.num_labels == 5
    for key, value in preset(name).items():
        assert getattr(config, key) == value


@pytest.mark.parametrize("name", ["bert-base", "bert-large"])
def test_bert_presets_belong_to_transformers(name):
    with pytest.raises(UserError, match=r"transformers\.BertConfig"):
        MobileBertConfig.from_preset(name)
    built = transformers.BertConfig(**preset(name))
    assert built.num_hidden_layers == {"bert-base": 12, "bert-large": 24}[name]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mobilbert", {}, "preset 'mobilbert' is unknown: choose one of bert-base, "),
        ("../presets/mobilebert", {}, "unknown"),
        ("mobilebert", {"num_layers": 3}, "unknown key 'num_layers'; did you mean num_labels"),
        ("mobilebert", {"model_type": "bert"}, "unknown key 'model_type'"),
        ("bert-base", {"trigram_input": True}, "unknown key 'trigram_input'"),
        ("mobilebert", {"num_attention_heads": 3}, "num_attention_heads: 3 does not divide intra_bottleneck_size, 128"),
        ("mobilebert", {"use_bottleneck": False, "num_attention_heads": 5}, "does not divide hidden_size, 512"),
        ("bert-base", {"num_attention_heads": 5}, "does not divide hidden_size, 768"),
        ("mobilebert", {"hidden_act": "silu"}, "hidden_act: 'silu' is unknown: choose one of relu, relu6, gelu"),
        ("mobilebert", {"normalization_type": "rms"}, "normalization_type: 'rms' is unknown"),
        ("mobilebert", {"hidden_size": 0}, "hidden_size: 0 is not a positive integer"),
        ("mobilebert", {"num_feedforward_networks": -1}, "num_feedforward_networks: -1"),
        ("mobilebert", {"num_hidden_layers": 2.0}, "num_hidden_layers: 2.0"),
        ("mobilebert", {"num_hidden_layers": True}, "num_hidden_layers: True"),
        ("mobilebert", {"embedding_size": 513}, "embedding_size: 513 is larger than hidden_size, 512"),
        ("mobilebert", {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob: 1.0"),
        ("mobilebert", {"residual_init_scale": 0}, "residual_init_scale: 0 is not a positive number"),
        ("mobilebert", {"layer_norm_eps": float("nan")}, "layer_norm_eps: nan is not a positive number"),
        ("bert-base", {"initializer_range": float("inf")}, "initializer_range: inf is not a positive number"),
        ("mobilebert", {"vocab_size": 10, "pad_token_id": 10}, "pad_token_id: 10 is no token of a vocabulary of 10"),
        ("mobilebert", {"pad_token_id": True}, "pad_token_id: True is no token of a vocabulary"),
        ("mobilebert", {"trigram_input": "no"}, "trigram_input: 'no' is neither true nor false"),
        ("mobilebert", {"mask_value": "-1"}, 'mask_value: \'-1\' is unknown: choose one of "min", "-10000", "-6"'),
        ("mobilebert", {"mask_value": -6}, "mask_value: -6 is unknown"),
        ("mobilebert", {"use_bottleneck_attention": True}, "key_query_shared_bottleneck: must be false"),
    ],
)
def test_refused_in_one_line(name, overrides, message):
    with pytest.raises(UserError) as refusal:
        preset(name, **overrides)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_rows_become_configurations():
    for name, row in paper.models().items():
        if row.preset not in ("bert-base", "bert-large", "bag-of-embeddings"):
            config = MobileBertConfig.from_row(name, num_labels=5)
            assert config.num_labels == 5
            for key, value in preset(row.preset, **row.overrides).items():
                assert getattr(config, key) == value
    assert MobileBertConfig.from_row("search-192", num_attention_heads=3).num_attention_heads == 3
    with pytest.raises(UserError, match=r"row 'search-z' is unknown; allowed: .*search-a"):
        MobileBertConfig.from_row("search-z")
    with pytest.raises(UserError, match=r"transformers\.BertConfig"):
        MobileBertConfig.from_row("bert-base")


def test_the_configuration_refuses_wrong_values():
    with pytest.raises(UserError, match="does not divide"):
        MobileBertConfig(num_attention_heads=3)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("tie_word_embeddings", "no", "tie_word_embeddings: 'no' is neither true nor false"),
        ("tie_word_embeddings", None, "tie_word_embeddings: None is neither true nor false"),
        ("output_hidden_states", "no", "output_hidden_states: 'no' is neither true nor false"),
        ("output_attentions", 1, "output_attentions: 1 is neither true nor false"),
        ("return_dict", "false", "return_dict: 'false' is neither true nor false"),
        ("problem_type", "ranking", "problem_type: 'ranking' is unknown: choose one of regression, "),
        ("problem_type", [], "problem_type: \\[\\] is unknown"),
    ],
)
def test_a_switch_of_transformers_with_another_type_is_refused(key, value, wanted, tmp_path):
    with pytest.raises(UserError, match=wanted):
        MobileBertConfig(**{key: value})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilebert", key: value}))
    with pytest.raises(UserError, match=f"config.json: {wanted}"):
        MobileBertConfig.from_pretrained(tmp_path)


def test_switches_that_are_null_are_transformers_defaults():
    assert MobileBertConfig(return_dict=None, output_hidden_states=None, problem_type=None).tie_word_embeddings
