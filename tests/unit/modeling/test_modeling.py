"""The model family against transformers' MobileBERT on copied weights, and its additions."""

import numpy as np
import pytest
import torch
from family import BATCH, HEADS, LABELS, LAYOUTS, SMALL, TOKENS, agree, agree_in_gradients, batch, close, gradients, pair
from hypothesis import given, settings
from hypothesis import strategies as st

import mobilebert
from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertModel
from mobilebert.util.errors import UserError


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("head", HEADS)
def test_heads_agree_with_transformers(head, norm, padded):
    fields = {"num_labels": 2 if head == "ForQuestionAnswering" else LABELS, "normalization_type": norm}
    agree(*pair(head, **fields), batch(head, padded))


@pytest.mark.parametrize("norm", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree_with_transformers(layout, norm):
    agree(*pair("ForPreTraining", normalization_type=norm, **LAYOUTS[layout]), batch("ForPreTraining", True))


@settings(max_examples=24, deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([8, 24]),
            "intra_bottleneck_size": st.sampled_from([6, 12]),
            "num_attention_heads": st.sampled_from([1, 2]),
            "num_hidden_layers": st.integers(1, 3),
            "num_feedforward_networks": st.integers(1, 4),
            "hidden_act": st.sampled_from(["relu", "relu6", "gelu", "gelu_new"]),
            "trigram_input": st.booleans(),
            "classifier_activation": st.booleans(),
            "normalization_type": st.sampled_from(["no_norm", "layer_norm"]),
        }
    ),
    head=st.sampled_from(HEADS),
    layout=st.sampled_from(sorted(LAYOUTS)),
    padded=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_drawn_configurations_agree_with_transformers(fields, head, layout, padded):
    fields["num_labels"] = 2 if head == "ForQuestionAnswering" else LABELS
    agree(*pair(head, **fields, **LAYOUTS[layout]), batch(head, padded))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dicts_are_exchanged_both_ways(head, layout):
    ours, theirs = pair(head, classifier_activation=layout == "tiny", **LAYOUTS[layout])
    mine, peer = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in peer.items()}
    theirs.load_state_dict(mine, strict=True)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
        ({"num_labels": 3}, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
        ({"num_labels": 3, "problem_type": "regression"}, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
    ],
)
def test_regression_and_multi_label_losses(fields, labels):
    ours, theirs = pair("ForSequenceClassification", **fields)
    inputs = batch("Model", True) | {"labels": labels}
    close(ours(**inputs).loss, theirs(**inputs).loss)
    assert ours.config.problem_type == theirs.config.problem_type


def test_the_other_inputs_agree_with_transformers():
    ours, theirs = pair("Model")
    inputs = batch("Model", True)
    embedded = torch.randn(BATCH, TOKENS, SMALL["embedding_size"])
    positions = torch.arange(TOKENS).flip(0).expand(BATCH, -1)
    visible = torch.rand(BATCH, 1, TOKENS, TOKENS) > 0.3
    visible |= torch.eye(TOKENS, dtype=torch.bool)
    for call in (
        {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]},
        {"input_ids": inputs["input_ids"], "position_ids": positions},
        {"input_ids": inputs["input_ids"], "attention_mask": visible},
    ):
        close(ours(**call).last_hidden_state, theirs(**call).last_hidden_state)
    as_tuple = ours(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    close(as_tuple[0], ours(**inputs).last_hidden_state, 0)


def test_a_mask_of_integers_for_each_query_is_refused():
    """It would be added to the scores: nothing would be masked, and nobody would notice."""
    ours, _ = pair("Model")
    with pytest.raises(ValueError, match=r"4 dimensions of torch.int64; allowed are bool, or floats to add"):
        ours(torch.ones(1, 2, dtype=torch.long), attention_mask=torch.ones(1, 1, 2, 2, dtype=torch.long).tril())


# ---- additions to transformers' interface for knowledge transfer and pre-training


@pytest.mark.parametrize("padded", [False, True])
def test_first_layers_and_chosen_attentions_equal_the_full_run(padded):
    model, _ = pair("Model", num_hidden_layers=4)
    inputs = batch("Model", padded)
    full = model(**inputs, output_hidden_states=True, output_attentions=True)
    for n in range(5):
        part = model(**inputs, num_layers=n, output_hidden_states=True)
        assert len(part.hidden_states) == n + 1
        close(part.last_hidden_state, full.hidden_states[n])
    chosen = model(**inputs, num_layers=3, attention_layers=[1])
    assert [p is None for p in chosen.attentions] == [True, False, True]
    close(chosen.attentions[1], full.attentions[1])
    close(chosen.last_hidden_state, full.hidden_states[3])
    assert model(**inputs).attentions is None
    for refused in ({"num_layers": 5}, {"num_layers": -1}, {"num_layers": 2, "attention_layers": [2]}):
        with pytest.raises(ValueError, match="layers"):
            model(**inputs, **refused)


def test_blocks_beyond_num_layers_do_not_run():
    model, _ = pair("Model", num_hidden_layers=3)
    ran = []
    for index, layer in enumerate(model.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(**batch("Model", False), num_layers=2)
    assert ran == [0, 1]


def test_attentions_are_those_before_dropout():
    model = MobileBertModel(MobileBertConfig(**SMALL | {"attention_probs_dropout_prob": 0.5})).train()
    inputs = batch("Model", True)
    torch.manual_seed(0)
    noisy = model(**inputs, output_attentions=True)
    close(noisy.attentions[0], model.eval()(**inputs, output_attentions=True).attentions[0])
    close(noisy.attentions[0].sum(-1), np.ones(noisy.attentions[0].shape[:-1]))
    model.train()
    torch.manual_seed(0)
    close(noisy.last_hidden_state, model(**inputs, output_attentions=True).last_hidden_state, 0)
    assert not torch.allclose(noisy.last_hidden_state, model.eval()(**inputs).last_hidden_state)


@pytest.mark.parametrize("padded", [False, True])
def test_logits_at_masked_positions_equal_the_plain_path(padded):
    model, _ = pair("ForPreTraining")
    inputs = batch("ForPreTraining", padded)
    plain = model(**inputs)
    expected = gradients(model, plain)
    positions = (inputs["labels"].flatten() != -100).nonzero().flatten()
    filled = torch.cat([positions, torch.zeros(2, dtype=torch.long)])
    labels = torch.cat([inputs["labels"].flatten()[positions], torch.full((2,), -100)])
    masked = model(**inputs | {"labels": labels, "masked_positions": filled})
    assert masked.prediction_logits.shape == (len(filled), SMALL["vocab_size"])
    close(masked.prediction_logits, plain.prediction_logits.flatten(0, 1)[filled])
    close(masked.loss, plain.loss)
    agree_in_gradients(gradients(model, masked), expected, floor=1.0)


def test_gradient_checkpointing_changes_no_gradient():
    model, _ = pair("ForMaskedLM")
    inputs = batch("ForMaskedLM", True)
    expected = gradients(model.train(), model(**inputs))
    assert sum(layer.gradient_checkpointing for layer in model.mobilebert.encoder.layer) == 0
    model.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.mobilebert.encoder.layer)
    found = gradients(model, model(**inputs))
    for name, gradient in expected.items():
        close(found[name], gradient)


# ---- initialisation, precision, saving


def test_initialisation():
    config = MobileBertConfig.from_preset("mobilebert", num_hidden_layers=2, vocab_size=2000, residual_init_scale=0.25)
    torch.manual_seed(0)
    model = MobileBertForPreTraining(config)
    residual = ("attention.output.dense.", "output.dense.", "output.bottleneck.dense.")
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name or name.endswith("bias"):
            assert (parameter == float(name.endswith("LayerNorm.weight"))).all(), name
        elif parameter.numel() > 5000:
            scale = 0.25 if "encoder" in name and any(part in name for part in residual) else 1.0
            assert parameter.std().item() == pytest.approx(0.02 * scale, rel=0.05), name
    assert (model.mobilebert.embeddings.word_embeddings.weight[config.pad_token_id] == 0).all()
    assert model.cls.predictions.decoder.weight is model.mobilebert.embeddings.word_embeddings.weight


def test_the_vocabulary_grows():
    ours, _ = pair("ForPreTraining")
    inputs = batch("ForPreTraining", False)
    before = ours(**inputs).prediction_logits
    ours.resize_token_embeddings(53)
    after = ours(**inputs).prediction_logits
    assert after.shape[-1] == 53
    close(after[..., :50], before)
    ours.resize_token_embeddings(60, pad_to_multiple_of=64)
    after = ours(**inputs).prediction_logits
    assert after.shape[-1] == 64
    close(after[..., :50], before)
    assert ours.cls.predictions.decoder.weight is ours.mobilebert.embeddings.word_embeddings.weight


def test_masked_positions_give_the_masked_lms_logits_and_loss():
    ours, _ = pair("ForMaskedLM")
    inputs = batch("ForMaskedLM", True)
    whole = ours(**inputs)
    positions = (inputs.pop("labels").flatten() != -100).nonzero().flatten()[::2]
    labels = torch.arange(len(positions))
    found = ours(**inputs, masked_positions=positions, labels=labels)
    expected = whole.logits.flatten(0, 1)[positions]
    close(found.logits, expected)
    close(found.loss, torch.nn.functional.cross_entropy(expected, labels))


def test_float16_is_refused_and_bfloat16_runs():
    inputs = batch("Model", True)
    ours, _ = pair("Model")
    expected = ours(**inputs).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(ours(**inputs).last_hidden_state.float(), expected, 0.1)
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(UserError, match="bfloat16"):
        ours(**inputs)
    with pytest.raises(UserError, match="bfloat16"):
        ours.half()(**inputs)
    half = MobileBertModel(MobileBertConfig(**SMALL)).bfloat16()
    assert half(**inputs).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("autocast", [False, True])
def test_a_row_of_padding_stays_finite(autocast):
    ours, _ = pair("Model")
    inputs = batch("Model", True)
    inputs["attention_mask"][1] = 0
    masks = []
    ours.encoder.register_forward_pre_hook(lambda module, args: masks.append(args[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = ours(**inputs).last_hidden_state
    # A value that bfloat16 scores keep finite: some attention kernels turn a row of infinities into
    # NaN.
    assert masks[0].to(torch.bfloat16 if autocast else torch.float32).isfinite().all()
    assert output.isfinite().all()
    output.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_padding_changes_nothing_but_the_neighbour_of_the_last_token():
    """Without the trigram, a padded row gives the same as the row alone."""
    ours, _ = pair("Model", trigram_input=False)
    inputs = batch("Model", True)
    padded = ours(**inputs).last_hidden_state[1, :4]
    close(padded, ours(inputs["input_ids"][1:2, :4], token_type_ids=inputs["token_type_ids"][1:2, :4])[0][0])


def test_classifier_dropout():
    for rate, expected in ((0.25, 0.25), (None, 0.125)):
        config = MobileBertConfig(**SMALL | {"hidden_dropout_prob": 0.125}, classifier_dropout=rate)
        assert mobilebert.MobileBertForSequenceClassification(config).dropout.p == expected


# ---- inference in place


def test_a_hook_keeps_the_output_of_its_layer():
    """A hook gets training's tensor, never overwritten; a layer of another type is called."""
    model, _ = pair("Model")
    inputs = batch("Model", True)
    dense = model.encoder.layer[0].output.dense
    heard = []
    handle = dense.register_forward_hook(lambda module, arguments, output: heard.append((output, output.clone())))
    expected = model(**inputs).last_hidden_state
    with torch.no_grad():
        close(model(**inputs).last_hidden_state, expected)
    handle.remove()
    (trained, before), (inferred, after) = heard
    close(inferred, trained, 1e-6)
    assert torch.equal(trained, before)
    assert torch.equal(inferred, after)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    doubled = Doubled(dense.in_features, dense.out_features)
    doubled.load_state_dict(dense.state_dict())
    model.encoder.layer[0].output.dense = doubled
    other = model(**inputs).last_hidden_state
    assert not torch.equal(other, expected)
    with torch.no_grad():
        close(model(**inputs).last_hidden_state, other)


def test_dropout_and_autocast_agree_with_and_without_gradients():
    model, _ = pair("Model", use_bottleneck=False, key_query_shared_bottleneck=False, hidden_dropout_prob=0.5)
    inputs, found = batch("Model", False), {}
    for training in (False, True):
        model.train(training)
        for grad in (False, True):
            torch.manual_seed(3)
            with torch.set_grad_enabled(grad):
                found[training, grad] = model(**inputs).last_hidden_state.detach()
        close(found[training, False], found[training, True])
    assert not torch.allclose(found[False, True], found[True, True])
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**inputs).last_hidden_state
        with torch.no_grad():
            assert torch.equal(model(**inputs).last_hidden_state, expected)
