"""torch.export and torch.compile take every model whole; one compiled block serves all layers."""

import pytest
import torch
from family import SMALL, agree_in_gradients, batch, close, gradients
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.export import Dim, export

import mobilebert
from mobilebert import MobileBertConfig

SHORT = {"num_hidden_layers": 1, "num_feedforward_networks": 1}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def build(head: str, **fields) -> torch.nn.Module:
    torch.manual_seed(0)
    model = getattr(mobilebert, f"MobileBert{head}")(MobileBertConfig(**SMALL | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


# Options that change the graph, one set a head: another norm and activation, replaced scores, no
# mask.
VARIANTS = {
    "ForNextSentencePrediction": {"normalization_type": "layer_norm", "hidden_act": "gelu_new", "classifier_activation": True},
    "ForMaskedLM": {"mask_value": "-6"},
    "ForTokenClassification": {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
}


@pytest.mark.parametrize("head", ["ForPreTraining", "ForSequenceClassification", "ForMultipleChoice", *VARIANTS])
def test_export(head):
    """Strict, with free batch and length: sizes that were not traced give eager's numbers."""
    model = build(head, **SHORT, **VARIANTS.get(head, {}))
    inputs = {key: value for key, value in batch(head, padded=head != "ForSequenceClassification").items() if key in INPUTS}
    tokens = 2 if head == "ForMultipleChoice" else 1
    free = {0: Dim("batch", max=64), tokens: Dim("tokens", min=2, max=SMALL["max_position_embeddings"])}
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, free), strict=True).module()
    for change in (lambda x: x, lambda x: torch.cat([x, x[:1]])[..., :5].contiguous()):
        changed = {key: change(value) for key, value in inputs.items()}
        expected = model(**changed)
        found = program(**changed)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close(found[key], value)


@pytest.mark.parametrize(("head", "padded"), [("ForPreTraining", True), ("ForQuestionAnswering", False)])
def test_a_whole_model_compiles_without_a_graph_break(head, padded):
    model, counter = build(head).train(), CompileCounter()
    inputs = batch(head, padded)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    close(compiled(**inputs).loss, model(**inputs).loss)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("layout", "padded"), [({}, True), ({"use_bottleneck_attention": True, "key_query_shared_bottleneck": False}, False)]
)
def test_one_compiled_block_serves_all_layers(layout, padded):
    # More layers than torch recompiles a function for (8), each with weights of its own.
    model = build("ForPreTraining", num_hidden_layers=10, **layout).train()
    counter = CompileCounterWithBackend("aot_eager")  # this backend also compiles the backward graph
    inputs = batch("ForPreTraining", padded)
    output = model(**inputs)
    expected, loss = gradients(model, output), output.loss
    for layer in model.mobilebert.encoder.layer:
        layer.compile(fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(error_on_recompile=True):
        output = model(**inputs)
    assert counter.frame_count == 1
    close(output.loss, loss)
    agree_in_gradients(gradients(model, output), expected, floor=1.0)
