"""The folded model against its original, in float64: differences are algebra, not rounding."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import mobilebert
from mobilebert import MobileBertConfig, MobileBertModel, fold
from mobilebert.modeling.encoder import MobileBertEncoder
from mobilebert.modeling.folding import Affine, FoldedLayer
from mobilebert.util.errors import UserError

SMALL = {
    "vocab_size": 50,
    "embedding_size": 8,
    "hidden_size": 24,
    "intra_bottleneck_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
HEADS = {
    "Model": ("last_hidden_state", "pooler_output"),
    "ForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "ForMaskedLM": ("logits",),
    "ForNextSentencePrediction": ("logits",),
    "ForSequenceClassification": ("logits",),
    "ForTokenClassification": ("logits",),
    "ForQuestionAnswering": ("start_logits", "end_logits"),
}
EXACT = 1e-11  # relative to the largest value; 5 orders above float64's rounding, 8 below a wrong term


def build(head: str = "Model", seed: int = 0, spread: float = 1.0, **fields):
    """Return a model whose every weight matters; scales and biases are wide, of either sign."""
    torch.manual_seed(seed)
    model = getattr(mobilebert, f"MobileBert{head}")(MobileBertConfig(**SMALL | fields)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(torch.randn_like(parameter) * spread)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(8)
    return model


def inputs(padded: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = {"input_ids": torch.randint(50, (3, 7), generator=generator), "token_type_ids": torch.ones(3, 7).long()}
    if padded:
        given["attention_mask"] = (torch.arange(7) < torch.tensor([[7], [4], [2]])).long()
    return given


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = EXACT):
    assert one.shape == other.shape
    assert (one - other).abs().max() <= tolerance * other.abs().max()


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from([(False, True), (False, False), (True, False), (True, True)]),
    bottleneck=st.booleans(),
    ffns=st.integers(1, 4),
    act=st.sampled_from(["relu", "relu6", "gelu", "gelu_new"]),
    trigram=st.booleans(),
    mask_value=st.sampled_from(["min", "-10000", "-6"]),
    padded=st.booleans(),
    seed=st.integers(0, 5),
)
def test_same_outputs_for_every_configuration(layout, bottleneck, ffns, act, trigram, mask_value, padded, seed):
    inside, shared = layout if bottleneck else (False, False)
    fields = {"use_bottleneck": bottleneck, "use_bottleneck_attention": inside, "key_query_shared_bottleneck": shared}
    fields["mask_value"] = mask_value
    model = build(seed=seed, num_feedforward_networks=ffns, hidden_act=act, trigram_input=trigram, **fields)
    folded, given = fold(model), inputs(padded)
    with torch.no_grad():
        expected = model(**given, output_hidden_states=True, output_attentions=True)
        asked = folded(**given, output_hidden_states=True, output_attentions=True)
        plain = folded(**given)  # the fused attention
    for name in ("last_hidden_state", "pooler_output"):
        close(asked[name], expected[name])
        close(plain[name], expected[name])
    for name in ("hidden_states", "attentions"):
        assert len(asked[name]) == len(expected[name])
        for one, other in zip(asked[name], expected[name], strict=True):
            close(one, other)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_and_its_loss(head):
    model = build(head)
    folded = fold(model)
    labels = {
        "ForMaskedLM": {"labels": inputs()["input_ids"]},
        "ForSequenceClassification": {"labels": torch.tensor([0, 1, 1])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([0, 1, 1]), "end_positions": torch.tensor([2, 2, 1])},
    }.get(head, {})
    with torch.no_grad():
        expected, found = model(**inputs(), **labels), folded(**inputs(), **labels)
    for name in (*HEADS[head], *(["loss"] if labels else [])):
        close(found[name], expected[name])
    assert type(folded) is type(model)


@pytest.mark.parametrize("odd", [0.0, 1e-30, -1e-9, 3e6])
def test_scales_near_zero_are_multiplied_by_and_never_divided_by(odd):
    model = build(hidden_act="relu6")
    for name, parameter in model.named_parameters():
        if "encoder" in name and name.endswith("LayerNorm.weight"):
            parameter.data[::3] = odd
    folded = fold(model)
    buffers = list(folded.encoder.buffers())
    assert all(torch.isfinite(buffer).all() for buffer in buffers)
    with torch.no_grad():
        expected, found = model(**inputs()).last_hidden_state, folded(**inputs()).last_hidden_state
    # Compare by channel: channels of tiny scale count as much as the others.
    error = (found - expected).abs().amax((0, 1)) / expected.abs().amax((0, 1)).clamp(min=1e-300)
    assert error.max() <= 1e-9


def test_channels_of_the_stream_between_blocks_keep_one_size_for_int8():
    """An int8 tensor has one range: with scales that differ by 1e5 most channels would be 0."""
    model = build(num_hidden_layers=24)
    for name, parameter in model.named_parameters():
        if "encoder" in name and name.endswith("LayerNorm.weight"):
            parameter.data.copy_(torch.exp(0.5 * torch.randn_like(parameter)))
    folded = fold(model)
    for block in folded.encoder.layer:
        assert block.scale.min() >= 1 / 4
        assert block.scale.max() <= 4
    with torch.no_grad():
        close(folded(**inputs()).last_hidden_state, model(**inputs()).last_hidden_state)


def test_norms_near_one_never_cost_a_multiplication():
    folded = fold(MobileBertModel(MobileBertConfig(**SMALL | {"num_hidden_layers": 24})))
    assert not any(part.keep is not None for part in folded.modules() if isinstance(part, Affine))


def test_float32_is_as_near_to_the_truth_as_the_unfolded_model():
    exact = build("Model", spread=0.5, num_hidden_layers=12)
    single = copy.deepcopy(exact).float()
    with torch.no_grad():
        truth = exact(**inputs()).last_hidden_state
        plain, folded = (model(**inputs()).last_hidden_state.double() for model in (single, fold(single)))
    scale = truth.abs().max()
    assert (folded - truth).abs().max() / scale < max(4 * (plain - truth).abs().max() / scale, 1e-6)


class Kernels(TorchDispatchMode):
    """Count operations that compute or copy; views are free."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view and function.overloadpacket.__name__ not in ("detach", "t")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layout", "kernels", "before"), [((False, True), 17, 34), ((False, False), 16, 32), ((True, False), 17, 32)]
)
def test_a_block_of_four_ffns_takes_seventeen_kernels(layout, kernels, before):
    """Product, attention, projection: 3; 4 x (up, activation, down): 12; way out: 1. Query and key
    of a shared bottleneck, and TINY's input bottleneck, are one more product."""
    inside, shared = layout
    model = build(use_bottleneck_attention=inside, key_query_shared_bottleneck=shared, num_feedforward_networks=4)
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            parameter.data.fill_(1.1)  # far from 1 the stream is multiplied
    layer, x = fold(model).encoder.layer[0], torch.randn(1, 7, 24, dtype=torch.float64)
    with torch.no_grad(), Kernels() as counted:
        layer(x, None, False)
    assert counted.count == kernels
    with Kernels() as unfolded:
        model.encoder.layer[0](x, None, False)
    assert unfolded.count == before


def test_folding_does_not_change_the_model():
    model = build("ForSequenceClassification").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    assert model.training
    assert not folded.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(isinstance(layer, FoldedLayer) for layer in folded.mobilebert.encoder.layer)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    model.mobilebert.encoder.layer[0].output.dense.weight.data.zero_()
    assert not torch.equal(fold(model)(**inputs()).logits, folded(**inputs()).logits)


def test_the_last_hidden_state_is_made_once():
    found = fold(build())(**inputs(), output_hidden_states=True)
    assert found.hidden_states[-1] is found.last_hidden_state


def test_an_encoder_with_hooks_or_of_another_class_is_refused():
    class Other(MobileBertEncoder):
        pass

    hooked, other = build(), build()
    hooked.encoder.register_forward_hook(lambda *given: None)
    other.encoder.__class__ = Other
    for model in (hooked, other):
        with pytest.raises(UserError, match=r"fold: encoder is no plain MobileBertEncoder \(it is \w+, or has hooks\)"):
            fold(model)


def test_models_that_cannot_be_folded_are_refused(tmp_path):
    folded = fold(build())
    for model in (build(normalization_type="layer_norm"), folded, torch.nn.Linear(2, 2)):
        with pytest.raises(UserError, match="not a MobileBERT model with no_norm, or is folded already"):
            fold(model)
    with pytest.raises(UserError, match="save the model it was folded from"):
        folded.save_pretrained(tmp_path)
    for one in (folded, copy.deepcopy(folded)):
        with pytest.raises(UserError, match="train the model it was folded from"):
            one.train()
        assert not any(part.training for part in one.eval().modules())
    assert list(tmp_path.iterdir()) == []


def test_folded_blocks_compile_without_a_break_and_export():
    model = fold(build().float())
    given = (inputs()["input_ids"], inputs()["attention_mask"])
    expected = model(*given).last_hidden_state
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(compiled(*given).last_hidden_state, expected, 1e-6)
    program = torch.export.export(model, given)
    close(program.module()(*given).last_hidden_state, expected, 1e-6)
