"""Saved models: exchanged with transformers, or refused in one line if of another kind."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from family import HEADS, SMALL, TOKENS, batch, close, pair
from safetensors.torch import load_file, save_file

import mobilebert
from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertModel
from mobilebert.data.tokenizer import SPECIAL_TOKENS, build_tokenizer
from mobilebert.modeling.presets import MASK_VALUES, preset
from mobilebert.pretraining import objective
from mobilebert.util.errors import UserError


def test_a_saved_model_is_loaded_unchanged_by_both_libraries(tmp_path):
    torch.manual_seed(0)
    saved = MobileBertForPreTraining(MobileBertConfig(**SMALL, residual_init_scale=0.1)).eval()
    saved.save_pretrained(tmp_path)
    inputs = batch("ForPreTraining", True)
    expected = saved(**inputs)
    again, report = MobileBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert again.config.residual_init_scale == 0.1
    close(again(**inputs).prediction_logits, expected.prediction_logits, 0)
    close(transformers.MobileBertForPreTraining.from_pretrained(tmp_path)(**inputs).loss, expected.loss)
    # Also load a head on top of a pre-trained body, as fine-tuning does.
    tuned = mobilebert.MobileBertForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(
        tuned.mobilebert.encoder.layer[1].output.dense.weight, saved.mobilebert.encoder.layer[1].output.dense.weight
    )
    assert tuned.classifier.weight.shape == (3, SMALL["hidden_size"])


def test_a_transformers_checkpoint_is_loaded(tmp_path):
    _, theirs = pair("ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    inputs = batch("ForMaskedLM", True)
    close(mobilebert.MobileBertForMaskedLM.from_pretrained(tmp_path)(**inputs).logits, theirs(**inputs).logits)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining"])
def test_a_head_that_the_checkpoint_lacks_starts_with_a_zero_bias(tmp_path, monkeypatch, head):
    """transformers creates weights that it did not read from uninitialised memory."""
    MobileBertModel(MobileBertConfig(**SMALL)).save_pretrained(tmp_path)
    monkeypatch.setattr(torch, "empty_like", lambda like, **kwargs: torch.full_like(like, 7, **kwargs))
    model = getattr(mobilebert, f"MobileBert{head}").from_pretrained(tmp_path)
    assert not model.cls.predictions.bias.any()
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_a_configuration_of_transformers_is_refused_and_can_be_made_ours(tmp_path):
    theirs = transformers.MobileBertConfig(**SMALL)
    with pytest.raises(UserError, match=r"config: MobileBertConfig of transformers.*; allowed: mobilebert.MobileBertConfig"):
        MobileBertModel(theirs)
    MobileBertModel(MobileBertConfig.from_dict(theirs.to_dict())).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"allowed: mobilebert.MobileBertConfig"):
        MobileBertModel.from_pretrained(tmp_path, config=theirs)


@pytest.mark.parametrize("mask_value", MASK_VALUES)
def test_mask_value_is_saved_and_does_not_stop_transformers(tmp_path, mask_value):
    saved = MobileBertModel(MobileBertConfig(**SMALL, mask_value=mask_value)).eval()
    saved.save_pretrained(tmp_path)
    again = MobileBertModel.from_pretrained(tmp_path)
    assert again.config.mask_value == mask_value
    inputs = batch("Model", True)
    close(again(**inputs).last_hidden_state, saved(**inputs).last_hidden_state, 0)
    theirs = transformers.MobileBertModel.from_pretrained(tmp_path)
    unpadded = batch("Model", False)
    close(saved(**unpadded).last_hidden_state, theirs(**unpadded).last_hidden_state)


# ---- what transformers lets its users do, and so do we


def test_precision_and_new_sizes_are_chosen_as_in_transformers(tmp_path):
    mobilebert.MobileBertForSequenceClassification(MobileBertConfig(**SMALL, num_labels=5)).save_pretrained(tmp_path)
    half = MobileBertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    new = {"num_labels": 3, "ignore_mismatched_sizes": True}
    model, report = mobilebert.MobileBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True, **new)
    assert model.classifier.weight.shape[0] == 3
    assert {key for key, *_ in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}


def test_a_pooler_may_be_new(tmp_path):
    mobilebert.MobileBertForMaskedLM(MobileBertConfig(**SMALL, classifier_activation=True)).save_pretrained(tmp_path)
    assert MobileBertModel.from_pretrained(tmp_path).pooler.dense is not None


@pytest.mark.parametrize("head", ["Model", "ForPreTraining", "ForQuestionAnswering"])
@pytest.mark.parametrize(("layers", "names"), [(1, "layers 1 to 2 are"), (2, "layer 2 is")])
def test_a_smaller_depth_asked_for_by_name_leaves_the_last_layers_out(tmp_path, caplog, head, layers, names):
    """transformers' class gives the same; so do the first `layers` blocks of the whole model."""
    whole = MobileBertForPreTraining(MobileBertConfig(**{**SMALL, "num_hidden_layers": 3})).eval()
    whole.save_pretrained(tmp_path)
    caplog.clear()
    found = getattr(mobilebert, f"MobileBert{head}").from_pretrained(tmp_path, num_hidden_layers=layers)
    said = [record.getMessage() for record in caplog.records if record.name == "mobilebert.modeling.loading"]
    assert said == [f"{tmp_path}: encoder {names} left out (num_hidden_layers={layers} of 3)"]
    assert found.config.num_hidden_layers == layers
    body, inputs = found.base_model.eval(), batch("Model", True)
    expected = whole.mobilebert(**inputs, num_layers=layers).last_hidden_state
    close(body(**inputs).last_hidden_state, expected, 0)
    theirs = transformers.MobileBertModel.from_pretrained(tmp_path, num_hidden_layers=layers).eval()
    close(theirs(**inputs).last_hidden_state, expected)
    found.save_pretrained(tmp_path / "cut")
    assert mobilebert.MobileBertModel.from_pretrained(tmp_path / "cut").config.num_hidden_layers == layers


# ---- refusals


def refusal(load) -> str:
    with pytest.raises(UserError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_model_is_refused(tmp_path):
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    transformers.BertModel(transformers.BertConfig(**{key: SMALL[key] for key in sizes})).save_pretrained(tmp_path)
    line = refusal(lambda: MobileBertModel.from_pretrained(tmp_path))
    assert line == f"{tmp_path}: model_type is 'bert' in config.json, not 'mobilebert'"
    assert "model_type is 'bert'" in refusal(lambda: MobileBertConfig.from_pretrained(tmp_path))
    # The same weights under our configuration.
    config = MobileBertConfig(**SMALL)
    assert "shape" in refusal(lambda: MobileBertModel.from_pretrained(tmp_path, config=config))


@pytest.mark.parametrize(
    ("saved", "read", "message"),
    [
        (
            {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
            {},
            "has shape (16, 16), the model's is (16, 24)",
        ),
        ({"num_feedforward_networks": 1}, {}, "it has no encoder.layer.0.ffn.0."),
        ({}, {"num_hidden_layers": 1}, "the model has no encoder.layer.1."),
        ({}, {"num_hidden_layers": 3}, "it has no encoder.layer.2."),
        ({"vocab_size": 49}, {}, "embeddings.word_embeddings.weight has shape (49, 8), the model's is (50, 8)"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, saved, read, message):
    MobileBertModel(MobileBertConfig(**SMALL | saved)).save_pretrained(tmp_path)
    line = refusal(lambda: MobileBertModel.from_pretrained(tmp_path, config=MobileBertConfig(**SMALL | read)))
    assert line.startswith(f"{tmp_path}: ")
    assert message in line


def test_no_other_override_cuts_a_checkpoint(tmp_path, caplog):
    """Refused: a depth that is the configuration's own or larger, another key, or anything but
    whole layers left out."""
    MobileBertForPreTraining(MobileBertConfig(**SMALL)).save_pretrained(tmp_path)

    def said(**overrides):
        return refusal(lambda: MobileBertModel.from_pretrained(tmp_path, **overrides))

    assert "it has no encoder.layer.2." in said(num_hidden_layers=3)
    assert "the model has no mobilebert.encoder.layer.0.ffn.0." in said(num_feedforward_networks=1)
    assert "the model has no mobilebert.encoder.layer.0.ffn.0." in said(num_hidden_layers=1, num_feedforward_networks=1)
    assert "has shape" in said(num_hidden_layers=1, hidden_size=32)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 1}))
    for overrides in ({}, {"num_hidden_layers": 1}):
        assert "the model has no mobilebert.encoder.layer.1." in said(**overrides)
    assert not caplog.records


def test_a_tiny_folder_without_its_configuration_is_refused(tmp_path):
    tiny = {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False}
    MobileBertForPreTraining(MobileBertConfig(**SMALL | tiny)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in fields.items() if key not in tiny}))
    assert "has shape" in refusal(lambda: MobileBertForPreTraining.from_pretrained(tmp_path))


def test_broken_files_are_refused(tmp_path):
    MobileBertModel(MobileBertConfig(**SMALL)).save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    for size in (4, 100, len(weights) // 2):
        (tmp_path / "model.safetensors").write_bytes(weights[:size])
        assert "no safetensors file that can be read" in refusal(lambda: MobileBertModel.from_pretrained(tmp_path))
    for text in ("[]", "3", '"mobilebert"', "null"):
        (tmp_path / "config.json").write_text(text)
        assert "config.json holds no JSON object" in refusal(lambda: MobileBertModel.from_pretrained(tmp_path))


def test_lost_encoder_weights_are_refused(tmp_path, caplog):
    MobileBertForPreTraining(MobileBertConfig(**SMALL)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["mobilebert.encoder.layer.1.output.dense.weight"]
    save_file(weights, file, {"format": "pt"})
    line = refusal(lambda: mobilebert.MobileBertForQuestionAnswering.from_pretrained(tmp_path))
    assert line.endswith("it has no mobilebert.encoder.layer.1.output.dense.weight")
    assert not caplog.records  # transformers would log a table


@pytest.mark.parametrize("layers", [0, -1, "1", 1.0, True, None])
def test_an_invalid_number_of_layers_is_refused(tmp_path, layers):
    MobileBertModel(MobileBertConfig(**SMALL)).save_pretrained(tmp_path)
    line = refusal(lambda: MobileBertModel.from_pretrained(tmp_path, num_hidden_layers=layers))
    assert line == f"{tmp_path}: num_hidden_layers: {layers!r} is not a positive integer"
    assert "num_attention_heads" in refusal(lambda: MobileBertConfig.from_pretrained(tmp_path, num_attention_heads=3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers_are_refused(tmp_path, value):
    model = MobileBertModel(MobileBertConfig(**SMALL))
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 2] = value
    model.save_pretrained(tmp_path)
    line = refusal(lambda: mobilebert.MobileBertForMaskedLM.from_pretrained(tmp_path))
    assert "encoder.layer.1.output.dense.weight holds NaN or infinite values" in line


def test_a_bert_row_is_loaded_as_strictly(tmp_path):
    fields = preset("bert-base", **{key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")})
    fields |= {"num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 16}
    saved = objective.new_model(fields)
    saved.save_pretrained(tmp_path / "bert")
    loaded = objective.load_model(tmp_path / "bert", fields)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in saved.state_dict().items())
    file = tmp_path / "bert" / "model.safetensors"
    weights = load_file(file)
    lost = weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, file, {"format": "pt"})
    assert "it has no bert.encoder.layer.1.output.dense.weight" in refusal(lambda: objective.load_model(file.parent, fields))
    save_file({**weights, "bert.encoder.layer.1.output.dense.weight": lost * float("nan")}, file, {"format": "pt"})
    assert "holds NaN" in refusal(lambda: objective.load_model(file.parent, fields))
    MobileBertForPreTraining(MobileBertConfig(**SMALL)).save_pretrained(tmp_path / "other")
    refusal(lambda: objective.load_model(tmp_path / "other", fields))


# ---- what a study saves


@pytest.mark.parametrize("model_type", ["mobilebert", "bert"])
def test_a_pretrained_folder_loads_without_the_study(tmp_path, model_type):
    words = [*SPECIAL_TOKENS, *(f"word{number}" for number in range(SMALL["vocab_size"] - 5))]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    source = SimpleNamespace(vocab=lambda: tmp_path / "vocab.txt")
    build_tokenizer(source, tmp_path / "data/tokenizer", None)
    run = SimpleNamespace(folder=tmp_path / "run", artefacts=[], artefact_of=lambda key, name: tmp_path / key / name)
    fields = {key: SMALL[key] for key in SMALL if model_type == "mobilebert" or hasattr(transformers.BertConfig(), key)}
    saved = objective.new_model({"model_type": model_type, **fields})
    objective.save_model(run, saved)
    alone = shutil.move(tmp_path / "run", tmp_path / "elsewhere") / "model"
    assert sorted(run.artefacts) == sorted(f"model/{file.name}" for file in alone.iterdir())
    tokenizer = transformers.AutoTokenizer.from_pretrained(alone)
    assert tokenizer.model_max_length == SMALL["max_position_embeddings"]
    assert tokenizer("Word3 word7")["input_ids"] == [2, 8, 12, 3]
    kind = MobileBertForPreTraining if model_type == "mobilebert" else transformers.BertForPreTraining
    loaded = kind.from_pretrained(alone).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in saved.state_dict().items())


# ---- inputs, of every head


def inputs_of(head: str, **changed) -> dict[str, torch.Tensor]:
    shape = (2, 2, TOKENS) if head == "ForMultipleChoice" else (2, TOKENS)
    inputs = {"input_ids": torch.ones(shape, dtype=torch.long)}
    for key, value in changed.items():
        inputs[key] = torch.zeros(shape, dtype=torch.long)
        inputs[key][..., -1] = value
    return inputs


@pytest.mark.parametrize("head", HEADS)
def test_ids_out_of_range_and_long_sequences_are_refused(head):
    model = getattr(mobilebert, f"MobileBert{head}")(MobileBertConfig(**SMALL)).eval()
    for key, low, high, allowed in (
        ("input_ids", -1, 50, "0 to 49"),
        ("token_type_ids", -1, 2, "0 to 1"),
        ("position_ids", -1, 16, "0 to 15"),
    ):
        for value in (low, high):
            line = refusal(lambda key=key, value=value: model(**inputs_of(head, **{key: value})))
            assert line.startswith(f"{key}: ids from ")
            assert line.endswith(f"allowed are {allowed}")
        model(**inputs_of(head, **{key: high - 1}))
    shape = (1, 1, 17) if head == "ForMultipleChoice" else (1, 17)
    line = refusal(lambda: model(torch.zeros(shape, dtype=torch.long)))
    assert line == "input_ids: 17 tokens, but max_position_embeddings is 16"
