"""Build small models beside transformers' on the same weights, and compare them."""

import numpy as np
import torch
import transformers

import mobilebert
from mobilebert import MobileBertConfig

TOLERANCE = 1e-5  # of the largest magnitude: NoNorm activations span many decades
BATCH, TOKENS, LABELS = 3, 7, 3
TINY = {
    "vocab_size": 31,
    "embedding_size": 8,
    "hidden_size": 16,
    "intra_bottleneck_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_feedforward_networks": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
}
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
    """Return our model and transformers' on the same weights, so wide that each one matters."""
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
    """Compare every output, and every gradient of the loss or of the sum of the outputs."""
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
    # Inference works in place; it must give the same outputs as training and leave the model as it
    # is.
    with torch.inference_mode():
        inference = ours(**inputs, **wanted)
    for key in inference:
        for a, b in zip(mine[key], inference[key]) if key == "hidden_states" else [(mine[key], inference[key])]:
            close(b, a)
    # Compare gradients in float32 relative to the largest one, then each by itself in float64:
    # there the rounding noise of small ones (a key's bias has no gradient in exact arithmetic)
    # hides no fault.
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
