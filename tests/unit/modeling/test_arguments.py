"""Our classes take what transformers' take: arguments, their order, another vocabulary size."""

import copy
import inspect
import pickle
import re

import pytest
import torch
import transformers
from family import HEADS, LABELS, SMALL, batch, close, pair

import mobilebert


@pytest.mark.parametrize("head", HEADS)
def test_forward_takes_transformers_arguments_in_their_order(head):
    ours, theirs = (
        list(inspect.signature(getattr(package, f"MobileBert{head}").forward).parameters.values())
        for package in (mobilebert, transformers)
    )
    assert [one.name for one in ours if one.kind == one.POSITIONAL_OR_KEYWORD][: len(theirs) - 1] == [
        one.name for one in theirs if one.kind == one.POSITIONAL_OR_KEYWORD
    ]
    assert {one.kind for one in ours} == {one.kind for one in theirs}  # **kwargs too
    for one, other in zip(ours, theirs[:-1]):
        assert one.default == other.default


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "extra",
    [
        {"head_mask": None},
        {"head_mask": torch.zeros(2, 2)},
        {"num_items_in_batch": 3},
        {"num_items_in_batch": torch.tensor(3), "use_cache": False},
        {"is_causal": False},
        {"output_hidden_states": [1, -1, 7]},
        {"output_hidden_states": 0},
        {"output_hidden_states": -3},
        {"return_dict": False},
    ],
    ids=str,
)
def test_further_arguments_have_the_effect_that_they_have_in_transformers(head, extra):
    ours, theirs = pair(head, num_labels=2 if head == "ForQuestionAnswering" else LABELS)
    inputs = batch(head, True)
    mine, peer = ours(**inputs, **extra), theirs(**inputs, **extra)
    if isinstance(peer, tuple):
        assert len(mine) == len(peer)
        mine, peer = dict(enumerate(mine)), dict(enumerate(peer))
    assert list(mine) == list(peer)
    for key, value in peer.items():
        if key != "hidden_states":
            close(mine[key], value)
            continue
        assert [state is None for state in mine[key]] == [state is None for state in value]
        for one, other in zip(mine[key], value, strict=True):
            if one is not None:
                close(one, other)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states", "return_dict"])
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_arguments_may_stand_in_the_configuration(head, name):
    ours, theirs = pair(head, num_labels=LABELS)
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
        setattr(model.config, name, name != "return_dict")
    mine, peer = (model(**batch(head, True)) for model in (ours, theirs))
    assert len(mine) == len(peer)
    assert isinstance(mine, tuple) == isinstance(peer, tuple)
    assert name == "return_dict" or len(mine[name.removeprefix("output_")]) == len(peer[name.removeprefix("output_")])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["input_ids", "inputs_embeds"])
def test_input_of_another_shape_is_refused_in_one_line_with_both_shapes(head, name):
    model = getattr(mobilebert, f"MobileBert{head}")(mobilebert.MobileBertConfig(**SMALL))
    wanted = ["batch", *(["choices"] if head == "ForMultipleChoice" else []), "tokens"]
    last = [] if name == "input_ids" else [SMALL["embedding_size"]]
    shapes = [(), (5,), (2,) * (len(wanted) + 1), *((2,) * place + (0,) + (2,) * (len(wanted) - place - 1) for place in (0, 1))]
    for shape in [(*shape, *last) for shape in shapes]:
        given = torch.zeros(shape, dtype=torch.long if name == "input_ids" else torch.float)
        names = ", ".join(wanted + ["embedding_size"] * len(last))
        line = f"{name}: shape {shape}; wanted is ({names}), each at least 1"
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            model(**{name: given})


@pytest.mark.parametrize("head", HEADS)
def test_no_input_is_refused_in_one_line(head):
    with pytest.raises(ValueError, match=r"^give input_ids or inputs_embeds, and not both$"):
        getattr(mobilebert, f"MobileBert{head}")(mobilebert.MobileBertConfig(**SMALL))()


def test_a_causal_encoder_is_refused():
    with pytest.raises(ValueError, match="is_causal: an encoder sees the whole sequence"):
        pair("Model")[0](torch.ones(1, 3, dtype=torch.long), is_causal=True)


# ---- a vocabulary of another size


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (50, {}, 50),
        (None, {}, 50),
        (None, {"pad_to_multiple_of": 4}, 52),
        (None, {"pad_to_multiple_of": 10}, 50),
        (56, {"pad_to_multiple_of": 4}, 56),
        (57, {"pad_to_multiple_of": 4, "mean_resizing": False}, 60),
        (61, {}, 61),
        (33, {}, 33),
    ],
)
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining"])
def test_a_resized_model_agrees_on_the_tokens_that_it_had(head, size, options, expected, tied, tmp_path):
    ours, theirs = pair(head, tie_word_embeddings=tied)
    if not options:
        theirs.resize_token_embeddings(size)  # transformers' takes no options
    ids = torch.arange(33).view(3, 11)
    key = "logits" if head == "ForMaskedLM" else "prediction_logits"
    wanted = theirs(ids)[key]
    for _ in range(2):  # the second time the size is the same
        returned = ours.resize_token_embeddings(size, **options)
        found = ours(ids)[key]
        both = min(expected, 50)
        assert found.shape[-1] == expected
        close(found[..., :both], wanted[..., :both])
        assert returned is ours.get_input_embeddings()
        assert ours.config.vocab_size == expected
        assert (ours.get_output_embeddings().weight is returned.weight) == tied
        assert (ours.cls.predictions.bias is ours.cls.predictions.decoder.bias) == tied
        assert ours.cls.predictions.dense.weight.shape == (24 - 8, expected)
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path).eval()
    close(again(ids)[key], found, 1e-6)
    theirs = type(theirs).from_pretrained(tmp_path).eval()
    close(theirs(ids)[key], found)


def test_a_resize_keeps_frozen_what_is_frozen():
    ours, _ = pair("ForMaskedLM")
    ours.requires_grad_(False)
    ours.resize_token_embeddings(55, mean_resizing=False)
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_replaced_embeddings_and_copies_agree_with_transformers(head):
    models = pair(head, num_labels=2 if head == "ForQuestionAnswering" else LABELS)
    inputs = batch(head, False)
    table, decoder = torch.nn.Embedding(50, SMALL["embedding_size"]), torch.nn.Linear(SMALL["embedding_size"], 50)
    results = []
    for model in models:
        model.set_input_embeddings(copy.deepcopy(table))
        if model.get_output_embeddings() is not None:
            model.set_output_embeddings(copy.deepcopy(decoder))
        untied = model(**inputs)
        model.tie_weights()
        for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            close(next(iter(same(**inputs).values())), next(iter(model(**inputs).values())), 0)
        results.append([next(iter(output.values())) for output in (untied, model(**inputs))])
    for mine, peer in zip(*results, strict=True):
        close(mine, peer)
    assert (models[0].get_output_embeddings() is None) == (models[1].get_output_embeddings() is None)


def test_one_trainer_step_gives_the_weights_of_transformers_model(tmp_path):
    weights = []
    for index, model in enumerate(pair("ForSequenceClassification", num_labels=LABELS)):
        rows = [{key: value[row] for key, value in batch("ForSequenceClassification", True).items()} for row in range(3)]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / str(index)), max_steps=1, per_device_train_batch_size=3, label_smoothing_factor=0.1,
            gradient_checkpointing=True, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=1e-2,
            optim="sgd",
        )  # fmt: skip
        transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
        weights.append(model.state_dict())
    for name, weight in weights[1].items():
        assert (weights[0][name] - weight).abs().max() <= 1e-5 * max(1.0, weight.abs().max()), name
