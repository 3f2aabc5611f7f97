"""The arithmetic of modeling.cost against built torch modules and the paper's figures."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertModel, paper
from mobilebert.modeling.cost import cost, describe
from mobilebert.modeling.presets import names, preset
from mobilebert.util.errors import UserError

configurations = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(5, 40),
        "embedding_size": st.sampled_from([4, 6, 12]),
        "hidden_size": st.sampled_from([12, 24]),
        "intra_bottleneck_size": st.sampled_from([6, 12, 36]),
        "num_attention_heads": st.sampled_from([1, 2, 3]),
        "num_hidden_layers": st.integers(1, 3),
        "num_feedforward_networks": st.integers(1, 3),
        "intermediate_size": st.integers(1, 20),
        "max_position_embeddings": st.integers(8, 12),
        "type_vocab_size": st.integers(1, 3),
        "trigram_input": st.booleans(),
        "use_bottleneck": st.booleans(),
        "use_bottleneck_attention": st.booleans(),
        "key_query_shared_bottleneck": st.booleans(),
        "classifier_activation": st.booleans(),
        "normalization_type": st.sampled_from(["no_norm", "layer_norm"]),
        "hidden_act": st.sampled_from(["relu", "relu6", "gelu", "gelu_new"]),
    }
)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@settings(max_examples=40, deadline=None)
@given(configurations)
def test_parameters_equal_those_of_the_built_model(fields):
    config = MobileBertConfig(**fields)
    with torch.device("meta"):
        model = MobileBertForPreTraining(config)
    figures = cost(config.to_dict(), seq=8)
    base, heads = model.mobilebert, model.cls
    assert figures.pooler == parameters(base.pooler)
    assert figures.encoder == parameters(base) - parameters(base.pooler)
    assert figures.nsp_head == parameters(heads.seq_relationship)
    assert figures.mlm_head == parameters(heads.predictions) - heads.predictions.decoder.weight.numel()
    assert figures.encoder + figures.pooler + figures.mlm_head + figures.nsp_head == parameters(model)

    # Components by their names in the state dict.
    def total(*words, without=("LayerNorm", "bias")):
        return sum(
            p.numel()
            for name, p in base.encoder.named_parameters()
            if any(w in name for w in words) and not any(w in name for w in without)
        )

    assert figures.bottlenecks == total("bottleneck")
    assert figures.mha == total("attention.self", "attention.output")
    assert figures.norms == total("LayerNorm", without=()) + parameters(base.embeddings.LayerNorm)
    assert figures.biases == total(".bias", without=("LayerNorm",))


@settings(max_examples=20, deadline=None)
@given(configurations, st.integers(1, 8))
def test_flops_equal_those_torch_counts(fields, seq):
    config = MobileBertConfig(**fields)
    with torch.device("meta"):
        model = MobileBertModel(config, add_pooling_layer=False).eval()
        ids = torch.zeros(1, seq, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        # Explicit attention: on some devices the counter misses the two products of a fused kernel.
        model(ids, output_attentions=True)
    assert counter.get_total_flops() == cost(config.to_dict(), seq).encoder_flops


@pytest.mark.parametrize("name", ["bert-base", "bert-large"])
def test_bert_parameters_equal_those_of_transformers(name):
    fields = preset(name, num_hidden_layers=2, vocab_size=100)
    with torch.device("meta"):
        model = transformers.BertForPreTraining(transformers.BertConfig(**fields))
    figures = cost(fields)
    assert figures.encoder + figures.pooler == parameters(model.bert)
    assert figures.encoder + figures.pooler + figures.mlm_head + figures.nsp_head == parameters(model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ib-bert-large", 294_205_184),
        ("mobilebert", 24_581_888),
        ("mobilebert-no-opt", 24_581_888),
        ("mobilebert-table1", 25_359_104),
        ("mobilebert-tiny", 15_485_696),
    ],
)
def test_totals_of_the_presets(name, expected):
    assert cost(preset(name)).encoder == expected


@pytest.mark.parametrize(
    ("name", "giga"),
    [("bert-base", 22.35), ("mobilebert", 5.39), ("mobilebert-table1", 5.59), ("mobilebert-tiny", 3.07)],
)
def test_flops_of_the_presets(name, giga):
    assert round(cost(preset(name), 128).encoder_flops / 1e9, 2) == giga


@pytest.mark.parametrize(
    ("name", "millions", "giga", "within"),
    [
        ("distilbert", 66, 11.3, 0.015),  # Sanh et al. 2019: 66 M; FLOPs as MobileBERT's Table 4 prints them
        ("tinybert-4l", 14.5, 1.2, 0.05),  # Jiao et al. 2020
        ("tinybert-6l", 67.0, 11.3, 0.015),
        ("minilm-6l", 22, None, 0.03),  # Wang et al. 2020
        ("minilm-12l", 33, None, 0.03),
    ],
)
def test_shapes_of_other_small_models_have_the_sizes_that_their_papers_print(name, millions, giga, within):
    figures = cost(preset(name), 128)
    assert figures.encoder / 1e6 == pytest.approx(millions, rel=within)
    if giga:
        assert figures.encoder_flops / 1e9 == pytest.approx(giga, rel=within)


def test_heads_of_the_released_model():
    figures = cost(preset("mobilebert"))
    assert (figures.mlm_head, figures.nsp_head, figures.pooler) == (12_014_650, 1_026, 0)


# paper.md's recomputation of Table 2, in M; the printed column agrees with it within 2.5 M.
TABLE_2 = dict(zip("abcdefghi", (357.6, 325.9, 294.2, 278.4, 262.5, 294.2, 92.7, 34.4, 15.9)))
# Table 3's multi-head attention and feed-forward networks, in M; the printed ones are rounded to
# half millions.
TABLE_3 = {192: (7.96, 7.08), 160: (6.51, 9.83), 128: (5.11, 12.58), 96: (3.76, 14.16)}


@pytest.mark.parametrize("row", paper.table(2).rows, ids=lambda row: row.model)
def test_rows_of_table_2(row):
    config = MobileBertConfig.from_row(row.model)
    with torch.device("meta"):
        built = MobileBertModel(config, add_pooling_layer=False)
    figures = cost(config.to_dict())
    assert parameters(built) == figures.encoder
    assert round(figures.encoder / 1e6, 1) == TABLE_2[row.model[-1]]
    assert abs(figures.encoder / 1e6 - row.published["params_M"]) <= 2.5
    for key, printed in (("hidden_size", "h_inter"), ("intra_bottleneck_size", "h_intra"), ("num_attention_heads", "heads")):
        assert getattr(config, key) == row.published[printed]
    assert config.num_hidden_layers == 24


@pytest.mark.parametrize("row", paper.table(3).rows, ids=lambda row: row.model)
def test_rows_of_table_3(row):
    config = MobileBertConfig.from_row(row.model)
    figures = cost(config.to_dict())
    found = (figures.mha / 1e6, figures.ffn / 1e6)
    assert tuple(round(value, 2) for value in found) == TABLE_3[config.intra_bottleneck_size]
    for value, key in zip(found, ("mha_params_M", "ffn_params_M")):
        assert abs(value - row.published[key]) <= 0.25
    for key, printed in (
        ("intra_bottleneck_size", "h_intra"),
        ("num_attention_heads", "heads"),
        ("num_feedforward_networks", "n_ffn"),
    ):
        assert getattr(config, key) == row.published[printed]
    assert config.intermediate_size == 4 * config.intra_bottleneck_size
    with torch.device("meta"):
        built = MobileBertModel(config, add_pooling_layer=False)
    assert parameters(built) == figures.encoder


def test_training_flops():
    # IB-BERT_LARGE, one token at length 128: multiply-accumulates of the blocks (q, k, v and both
    # bottlenecks; attention output; FFN; scores and context) and of the trigram, and the MLM head
    # for 15 % of the tokens; times 2 for FLOPs, times 3 for the backward pass.
    encoder = 24 * (5 * 512 * 1024 + 1024**2 + 2 * 1024 * 4096 + 2 * 128 * 1024) + 384 * 512
    expected = 6 * (encoder + 0.15 * 512 * (512 + 30522))
    assert cost(preset("ib-bert-large"), 128).training_flops_per_token == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seq", [0, -1, 513])
def test_length_out_of_range(seq):
    with pytest.raises(UserError, match="max_position_embeddings, 512"):
        cost(preset("mobilebert"), seq)


def test_unknown_model_type():
    with pytest.raises(UserError, match="model_type: 'gpt2'"):
        cost(preset("mobilebert") | {"model_type": "gpt2"})


@pytest.mark.parametrize("name", names())
def test_describe(name):
    record = json.loads(describe(name, 128, as_json=True))
    figures = cost(preset(name))
    assert record["cost"]["encoder"] == figures.encoder
    assert record["cost"]["encoder_flops"] == figures.encoder_flops
    text = describe(name)
    assert f"{figures.encoder / 1e6:.3f} M" in text
    if name in paper.models() or name == "mobilebert-table1":
        assert f"{record['published']['parameters_M']} M (Table 1)" in text
    else:
        assert record["published"] == {"parameters_M": None, "flops_G": None}
    assert "published" in text
    for shown in (f"{figures.kernels:,}", f"{figures.weight_bytes['int8'] / 2**20:,.2f} MiB"):
        assert shown in text
    for key in ("kernels", "activation_bytes", "saved_bytes_per_token", "weight_bytes", "training_state_bytes"):
        assert record["cost"][key] == getattr(figures, key)
    assert "Table 4" not in describe(name, 64)  # the paper's FLOPs are for length 128


def test_neither_torch_nor_transformers_is_imported():
    code = (
        "import sys, mobilebert, mobilebert.modeling; from mobilebert.modeling.cost import describe; "
        "describe('mobilebert'); print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_describe_knows_every_row_of_the_papers_tables():
    """Table 2 prints parameters of its own rows; a row with a preset's name is that preset."""
    rows = {name: row for name, row in paper.models().items() if name != "bag-of-embeddings"}
    for name, row in rows.items():
        record = json.loads(describe(name, 128, as_json=True))
        assert record["config"] == (preset(name) if name in names() else preset(row.preset, **row.overrides))
    for row in paper.table(2).rows:
        assert f"{row.published['params_M']:.1f} M (Table 2)" in describe(row.model)
    assert "(Table" not in describe("search-192").split("FLOPs")[0]
    with pytest.raises(UserError, match=r"^describe: no model 'search-z'; allowed: search-.*\(39 in all\)$"):
        describe("search-z")
    with pytest.raises(UserError, match="no model 'bag-of-embeddings'"):
        describe("bag-of-embeddings")
