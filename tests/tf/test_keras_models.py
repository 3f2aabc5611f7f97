"""The Keras classes compute what the PyTorch classes compute, and give the same gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from family import HEADS, LAYOUTS, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_family import agree, inputs_of, pair

from mobilebert import MobileBertConfig
from mobilebert import tf as keras_models
from mobilebert.modeling.presets import ACTIVATIONS, MASK_VALUES, NORMS
from mobilebert.util.errors import UserError

IDS = np.zeros((2, 3), np.int32)
WANTED = {"output_hidden_states": True, "output_attentions": True}
TABLE_1 = {"use_bottleneck_attention": False, "key_query_shared_bottleneck": False}
MODELS = {  # the paper's models in small
    "teacher": TABLE_1 | {"hidden_act": "gelu_new", "normalization_type": "layer_norm", "num_feedforward_networks": 1},
    "Table 1": TABLE_1,
    "w/o OPT": {"hidden_act": "gelu_new", "normalization_type": "layer_norm", "classifier_activation": False},
    **LAYOUTS,
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_outputs_equal_those_of_pytorch(head, padded):
    ours, theirs = pair(head)
    inputs, arrays = inputs_of(head, padded)
    agree(ours(**arrays, **WANTED), theirs(**inputs, **WANTED))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_paper_equals_that_of_pytorch(name):
    ours, theirs = pair("ForPreTraining", **MODELS[name])
    inputs, arrays = inputs_of("ForPreTraining", True)
    agree(ours(arrays, **WANTED), theirs(**inputs, **WANTED))


configurations = st.fixed_dictionaries(
    {
        "hidden_act": st.sampled_from(ACTIVATIONS),
        "normalization_type": st.sampled_from(NORMS),
        "mask_value": st.sampled_from(MASK_VALUES),
        "trigram_input": st.booleans(),
        "classifier_activation": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_feedforward_networks": st.integers(1, 3),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "num_hidden_layers": st.integers(1, 3),
        "embedding_size": st.sampled_from([8, 24]),
        "layer_norm_eps": st.sampled_from([1e-12, 1e-5]),
    }
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(configurations, st.sampled_from([TABLE_1, *LAYOUTS.values()]), st.booleans())
def test_drawn_configurations_equal_those_of_pytorch(fields, layout, padded):
    ours, theirs = pair("ForPreTraining", **fields, **layout)
    inputs, arrays = inputs_of("ForPreTraining", padded)
    agree(ours(arrays, **WANTED), theirs(**inputs, **WANTED))


@pytest.mark.parametrize("head", HEADS[1:])
def test_gradients_of_the_loss_equal_those_of_pytorch(head):
    ours, theirs = pair(head)
    inputs, arrays = inputs_of(head, True)
    theirs.train()(**inputs).loss.backward()
    with tf.GradientTape() as tape:
        loss = ours(arrays, training=True).loss
    variables = ours.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    found = {id(variable): gradient for variable, gradient in zip(variables, gradients) if gradient is not None}
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None and p.numel()}
    largest = max(gradient.abs().max() for gradient in wanted.values())
    named = keras_models.weights.named_weights(ours)
    assert set(wanted) <= set(named)
    for name, gradient in wanted.items():
        mine = tf.convert_to_tensor(found[id(named[name].variable)]).numpy()
        mine = torch.from_numpy(mine.T.copy() if named[name].is_transposed else mine)
        assert (mine - gradient).abs().max() <= 1e-4 * max(gradient.abs().max(), 1e-2 * largest), name


def test_padding_rows_get_no_gradient_from_their_lookup():
    ours, _ = pair("ForSequenceClassification")
    _, arrays = inputs_of("ForSequenceClassification", True)
    arrays["input_ids"] = arrays["input_ids"] * arrays["attention_mask"]
    table = ours.mobilebert.embeddings.word_embeddings.weight.value
    with tf.GradientTape() as tape:
        loss = ours(arrays, training=True).loss
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert not gradient[0].any()
    assert gradient[arrays["input_ids"][0, 0]].any()


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"num_labels": 1}, np.array([0.5, 1.0, 2.0], np.float32)),
        ({"num_labels": 3}, np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32)),
    ],
    ids=["regression", "several labels"],
)
def test_the_problem_type_follows_from_the_labels(fields, labels):
    ours, theirs = pair("ForSequenceClassification", **fields)
    inputs, arrays = inputs_of("ForSequenceClassification", False)
    mine = ours(**arrays | {"labels": labels})
    agree(mine, theirs(**inputs | {"labels": torch.from_numpy(labels)}))
    assert ours.config.problem_type == theirs.config.problem_type


def test_inputs_may_be_a_dictionary_a_list_lists_of_numbers_or_embeddings():
    ours, theirs = pair("Model")
    inputs, arrays = inputs_of("Model", True)
    wanted = theirs(**inputs)
    agree(ours(arrays), wanted)
    agree(ours([arrays["input_ids"], arrays["attention_mask"], arrays["token_type_ids"]]), wanted)
    agree(ours(**{name: array.tolist() for name, array in arrays.items()}), wanted)
    rows = tf.gather(ours.mobilebert.embeddings.word_embeddings.weight.value, arrays.pop("input_ids"))
    agree(ours(inputs_embeds=rows, **arrays), wanted)
    assert isinstance(ours(inputs_embeds=rows, return_dict=False, **arrays), tuple)


def test_a_mask_of_queries_and_keys_is_taken_as_in_pytorch():
    ours, theirs = pair("Model")
    inputs, arrays = inputs_of("Model", False)
    mask = torch.ones(7, 7).tril().bool().expand(3, 1, 7, 7)
    agree(ours(**arrays, attention_mask=mask.numpy()), theirs(**inputs, attention_mask=mask))


def test_a_head_mask_switches_heads_off():
    ours, _ = pair("Model")
    _, arrays = inputs_of("Model", True)
    on = ours(**arrays, head_mask=np.ones((2, 2), np.float32)).last_hidden_state
    np.testing.assert_array_equal(on, ours(**arrays).last_hidden_state)
    off = ours(**arrays, head_mask=np.array([1.0, 0.0], np.float32)).last_hidden_state
    assert not np.allclose(on, off)


def test_one_graph_serves_any_batch_and_length():
    ours, _ = pair("ForQuestionAnswering")
    traces = []

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None), tf.int32)])
    def run(input_ids, attention_mask):
        traces.append(1)
        return ours(input_ids, attention_mask=attention_mask)

    for batch, tokens in ((1, 1), (3, 7), (2, 16)):
        ids = np.random.default_rng(0).integers(0, 50, (batch, tokens)).astype(np.int32)
        mask = np.ones_like(ids)
        agree(run(ids, mask), ours(ids, attention_mask=mask), 1e-6)
    assert len(traces) == 1


def test_a_functional_model_can_be_built_on_top():
    ours, _ = pair("Model")
    ids = keras.Input((None,), dtype="int32")
    top = keras.Model(ids, keras.layers.Dense(2)(ours(ids).pooler_output))
    assert top.predict(np.zeros((3, 5), np.int32), verbose=0).shape == (3, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: model(np.zeros((1, 17), np.int32)), "input_ids: 17 tokens, but max_position_embeddings is 16$"),
        (lambda model: model(np.full((1, 3), 50)), "input_ids: ids from 50 to 50; allowed are 0 to 49$"),
        (lambda model: model(np.zeros((1, 3), np.float32)), "input_ids: float32; ids must be integers$"),
        (lambda model: model({"input_id": np.zeros((1, 3), np.int32)}), "inputs: 'input_id' is unknown"),
        (lambda model: model(np.zeros((1, 3), np.int32), lables=np.zeros(1)), ".*no argument 'lables'"),
        (lambda model: model([[1, 2, 3], [4, 5]]), "input_ids: rows of different lengths; pad them to one length$"),
        (
            lambda model: model(np.zeros((0, 3), np.int32)),
            r"input_ids: shape \(0, 3\); wanted is \(batch, tokens\), each at least 1$",
        ),
        (lambda model: model(IDS, np.ones((2, 4))), r"attention_mask: shape \(2, 4\); the input has 2 rows of 3 tokens$"),
        (lambda model: model(IDS, token_type_ids=np.ones((3, 3), int)), r"token_type_ids: shape \(3, 3\)"),
        (lambda model: model(IDS, position_ids=np.arange(4)), r"position_ids: shape \(4,\)"),
        (lambda model: model(inputs_embeds=np.ones((2, 3, 9))), "inputs_embeds: 9 features, but embedding_size is 8$"),
    ],
)
def test_bad_inputs_are_named_in_one_line(call, says):
    model = keras_models.TFMobileBertForSequenceClassification(MobileBertConfig(**SMALL))
    with pytest.raises(UserError, match=f"^{says}"):
        call(model)


def test_a_sequence_that_is_too_long_for_a_graph_of_any_length_is_named():
    model = keras_models.TFMobileBertModel(MobileBertConfig(**SMALL))
    run = tf.function(model, input_signature=[tf.TensorSpec((None, None), tf.int32)])
    assert run(np.zeros((1, 16), np.int32)).last_hidden_state.shape == (1, 16, 24)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more tokens than max_position_embeddings, 16"):
        run(np.zeros((1, 17), np.int32))


def test_float16_is_refused():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(UserError, match="float16 ends at 65,504"):
            keras_models.TFMobileBertModel(MobileBertConfig(**SMALL))
    finally:
        keras.config.set_dtype_policy("float32")


def test_weights_are_drawn_with_the_configured_deviations():
    keras.utils.set_random_seed(0)
    config = MobileBertConfig(**SMALL | {"intermediate_size": 400, "residual_init_scale": 0.25, "initializer_range": 0.04})
    arrays = keras_models.TFMobileBertForPreTraining(config).state_dict()
    assert arrays["mobilebert.encoder.layer.0.intermediate.dense.weight"].std() == pytest.approx(0.04, rel=0.05)
    assert arrays["mobilebert.encoder.layer.0.output.dense.weight"].std() == pytest.approx(0.01, rel=0.05)
    assert not arrays["mobilebert.embeddings.word_embeddings.weight"][0].any()
    assert not arrays["cls.predictions.bias"].any()
