"""The model family against transformers' MobileBERT on copied weights, and against a NumPy block where it has none."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, softmax

import mobilebert
from mobilebert import MobileBertConfig, MobileBertForPreTraining, MobileBertModel
from mobilebert.errors import UserError

TOLERANCE = 1e-5  # of the largest magnitude: NoNorm activations span many decades
BATCH, TOKENS, LABELS = 3, 7, 3
SMALL = {
    "vocab_size": 50,
    "embedding_size": 8,
    "hidden_size": 24,
    "intra_bottleneck_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_feedforward_networks": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LAYOUTS = {
    "released": {},
    "tiny": {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
    "idle bottleneck": {"use_bottleneck_attention": True, "key_query_shared_bottleneck": True},
    "no bottleneck": {"use_bottleneck": False, "key_query_shared_bottleneck": False},
}
HEADS = (
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


def close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = (np.asarray(x.detach() if torch.is_tensor(x) else x, dtype=np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-30)


def pair(head: str, **fields):
    """Our model and transformers', on the same weights: drawn wide enough that every one of them matters."""
    fields = SMALL | fields
    torch.manual_seed(0)
    theirs = getattr(transformers, f"MobileBert{head}")(transformers.MobileBertConfig(**fields)).eval()
    ours = getattr(mobilebert, f"MobileBert{head}")(MobileBertConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "LayerNorm" in name or "bias" in name else 0.15))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def batch(head: str, padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(high, *shape):
        return torch.randint(high, shape, generator=generator)

    shape = (BATCH, 2, TOKENS) if head == "ForMultipleChoice" else (BATCH, TOKENS)
    inputs = {"input_ids": draw(SMALL["vocab_size"], *shape), "token_type_ids": draw(2, *shape)}
    if padded:
        lengths = torch.tensor([TOKENS, 4, 2]).view(BATCH, *[1] * (len(shape) - 1))
        inputs["attention_mask"] = (torch.arange(TOKENS) < lengths).long().expand(shape).contiguous()
    labels = {
        "Model": {},
        "ForPreTraining": {"labels": draw(50, *shape), "next_sentence_label": draw(2, BATCH)},
        "ForMaskedLM": {"labels": draw(50, *shape)},
        "ForNextSentencePrediction": {"labels": draw(2, BATCH)},
        "ForSequenceClassification": {"labels": draw(LABELS, BATCH)},
        "ForMultipleChoice": {"labels": draw(2, BATCH)},
        "ForTokenClassification": {"labels": draw(LABELS, *shape)},
        "ForQuestionAnswering": {"start_positions": draw(TOKENS, BATCH), "end_positions": torch.tensor([3, 900, 0])},
    }[head]
    if head in ("ForPreTraining", "ForMaskedLM"):
        labels["labels"][:, ::3] = -100
    return inputs | labels


def agree(ours, theirs, inputs):
    """Every output, and every gradient of the loss or of the sum of the outputs."""
    wanted = {"output_hidden_states": True}
    mine = ours(**inputs, **wanted, output_attentions=True)
    peer = theirs(**inputs, **wanted)
    theirs.set_attn_implementation("eager")
    attentions = theirs(**inputs, output_attentions=True).attentions
    for key, value in peer.items():
        if key == "hidden_states":
            assert len(mine[key]) == len(value)
            for a, b in zip(mine[key], value):
                close(a, b)
        else:
            close(mine[key], value)
    assert len(mine.attentions) == len(attentions)
    for a, b in zip(mine.attentions, attentions):
        close(a, b)

    # The plain call goes through the fused kernel.
    plain = ours(**inputs)
    for key in plain:
        close(plain[key], peer[key])
    # Gradients: in float32 relative to the largest one, then each by itself in float64, where the rounding noise of
    # small ones (a key's bias has no gradient at all in exact arithmetic) does not hide a fault.
    agree_in_gradients(gradients(ours, plain), gradients(theirs, peer), floor=1.0)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    plain, peer = ours.double()(**inputs), theirs.double()(**inputs)
    agree_in_gradients(gradients(ours, plain), gradients(theirs, peer), floor=1e-9)


def agree_in_gradients(ours, theirs, floor):
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= TOLERANCE * max(gradient.abs().max(), floor * largest), name


def gradients(model, output) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (output.loss if "loss" in output else output[0].square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.numel()}


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


@settings(max_examples=12, deadline=None)
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
    layout=st.sampled_from(sorted(LAYOUTS)),
    padded=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_drawn_configurations_agree_with_transformers(fields, layout, padded):
    agree(*pair("ForPreTraining", **fields, **LAYOUTS[layout]), batch("ForPreTraining", padded))


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


# ---- the layouts that transformers cannot build, against NumPy in float64


def numpy_block(w, prefix, x, heads, layer_norm, ffns, shared=False):
    """One block with a bottleneck, written from the paper's figure 1 and Table 1. x: (tokens, hidden)."""

    def linear(name, x):
        return x @ w[f"{prefix}.{name}.weight"].T + w[f"{prefix}.{name}.bias"]

    def norm(name, x, eps):
        if layer_norm:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * w[f"{prefix}.{name}.weight"] + w[f"{prefix}.{name}.bias"]

    def activation(x):
        tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return tanh if layer_norm else np.maximum(x, 0)

    residual = norm("bottleneck.input.LayerNorm", linear("bottleneck.input.dense", x), 1e-12)
    query, key, value = (
        linear(f"attention.self.{part}", x).reshape(len(x), heads, -1).swapaxes(0, 1) for part in ("query", "key", "value")
    )
    probabilities = softmax(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]), axis=-1)
    context = (probabilities @ value).swapaxes(0, 1).reshape(len(x), -1)
    y = norm("attention.output.LayerNorm", linear("attention.output.dense", context) + residual, 1e-12)
    for i in range(ffns - 1):
        inner = activation(linear(f"ffn.{i}.intermediate.dense", y))
        y = norm(f"ffn.{i}.output.LayerNorm", linear(f"ffn.{i}.output.dense", inner) + y, 1e-12)
    y = norm("output.LayerNorm", linear("output.dense", activation(linear("intermediate.dense", y))) + y, 1e-5)
    return norm("output.bottleneck.LayerNorm", linear("output.bottleneck.dense", y) + x, 1e-12), probabilities


@pytest.mark.parametrize("name", ["ib-bert-large", "mobilebert-table1"])
def test_table_1_layouts_against_numpy(name):
    small = {k: v for k, v in SMALL.items() if k != "num_feedforward_networks"} | {"intra_bottleneck_size": 32}
    config = MobileBertConfig.from_preset(name, **small)
    torch.manual_seed(0)
    model = MobileBertModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert model.encoder.layer[0].attention.self.query.weight.shape == (32, 24)
    output = model(batch("Model", False)["input_ids"], output_hidden_states=True, output_attentions=True)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    for layer in range(config.num_hidden_layers):
        for row in range(BATCH):
            expected, probabilities = numpy_block(
                weights,
                f"encoder.layer.{layer}",
                output.hidden_states[layer][row].detach().numpy(),
                config.num_attention_heads,
                layer_norm=config.normalization_type == "layer_norm",
                ffns=config.num_feedforward_networks,
            )
            close(output.hidden_states[layer + 1][row], expected, 1e-12)
            close(output.attentions[layer][row], probabilities, 1e-12)


def test_activations_by_their_definitions():
    from mobilebert.modeling.layers import ACTIVATIONS

    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    n = x.numpy()
    expected = {
        "relu": np.maximum(n, 0),
        "relu6": np.clip(n, 0, 6),
        "gelu": n * 0.5 * (1 + erf(n / np.sqrt(2))),
        "gelu_new": 0.5 * n * (1 + np.tanh(np.sqrt(2 / np.pi) * (n + 0.044715 * n**3))),
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, values in expected.items():
        close(ACTIVATIONS[name]()(x.clone()), values, 1e-14)  # relu works in place


# ---- what knowledge transfer and pre-training ask beside transformers' interface


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
    # And a head on top of a pre-trained body, as fine-tuning starts.
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


def test_the_vocabulary_grows():
    ours, _ = pair("ForPreTraining")
    inputs = batch("ForPreTraining", False)
    before = ours(**inputs).prediction_logits
    ours.resize_token_embeddings(53)
    after = ours(**inputs).prediction_logits
    assert after.shape[-1] == 53
    close(after[..., :50], before)
    assert ours.cls.predictions.decoder.weight is ours.mobilebert.embeddings.word_embeddings.weight


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
    # Finite once it meets bfloat16 scores: some attention kernels turn a row of infinities into NaN.
    assert masks[0].to(torch.bfloat16 if autocast else torch.float32).isfinite().all()
    assert output.isfinite().all()
    output.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_padding_changes_nothing_but_the_neighbour_of_the_last_token():
    """Without the trigram, a padded row gives what the row alone gives."""
    ours, _ = pair("Model", trigram_input=False)
    inputs = batch("Model", True)
    padded = ours(**inputs).last_hidden_state[1, :4]
    close(padded, ours(inputs["input_ids"][1:2, :4], token_type_ids=inputs["token_type_ids"][1:2, :4])[0][0])


def test_classifier_dropout():
    for rate, expected in ((0.25, 0.25), (None, 0.125)):
        config = MobileBertConfig(**SMALL | {"hidden_dropout_prob": 0.125}, classifier_dropout=rate)
        assert mobilebert.MobileBertForSequenceClassification(config).dropout.p == expected


def test_too_long_a_sequence_is_refused():
    with pytest.raises(UserError, match="17 tokens, but max_position_embeddings is 16"):
        MobileBertModel(MobileBertConfig(**SMALL))(torch.zeros(1, 17, dtype=torch.long))
