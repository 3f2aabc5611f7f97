"""The Keras classes take what Keras users give them: labels, policies, frozen layers, graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from family import SMALL, close
from keras_family import agree, inputs_of, pair
from transformers import BatchEncoding

from mobilebert import MobileBertConfig
from mobilebert import tf as keras_models
from mobilebert.util.errors import UserError


@pytest.fixture
def policy():
    """Return the function that sets Keras's dtype policy, for this test alone."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


# ---- inputs and labels


def test_what_a_tokenizer_returns_is_an_input():
    ours, _ = pair("Model")
    _, arrays = inputs_of("Model", True)
    wanted = ours(arrays)
    agree(ours(BatchEncoding(arrays)), wanted, 0)
    agree(ours(BatchEncoding({name: array.tolist() for name, array in arrays.items()})), wanted, 0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.uint32, np.int64])
def test_ids_may_be_integers_of_any_width(kind):
    ours, _ = pair("Model")
    _, arrays = inputs_of("Model", True)
    agree(ours({name: array.astype(kind) for name, array in arrays.items()}), ours(arrays), 0)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_classes_may_be_floats(shape):
    ours, _ = pair("ForSequenceClassification")
    _, arrays = inputs_of("ForSequenceClassification", False)
    wanted = ours(arrays).loss
    ours.config.problem_type = None
    close(ours(arrays | {"labels": arrays["labels"].astype(np.float64).reshape(shape)}).loss, wanted, 0)
    assert ours.config.problem_type == "single_label_classification"
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels: not whole numbers; a regression has num_labels=1"):
        ours(arrays | {"labels": np.array([0.5, 1.0, 2.0])})


# ---- dtype policies


def test_a_float64_model_is_as_precise_as_pytorch_s(policy):
    policy("float64")
    ours, theirs = pair("ForSequenceClassification")
    inputs, arrays = inputs_of("ForSequenceClassification", True)
    agree(ours(arrays), theirs.double()(**inputs), 1e-12)
    assert ours.loss_of(ours(arrays), arrays).dtype == tf.float64
    rows = np.random.default_rng(0).standard_normal((3, 7, SMALL["embedding_size"]))
    agree(ours(inputs_embeds=rows), theirs(inputs_embeds=torch.from_numpy(rows)), 1e-12)


def test_labels_keep_their_precision_under_bfloat16(policy):
    policy("mixed_bfloat16")
    ours, _ = pair("ForSequenceClassification", num_labels=1)
    _, arrays = inputs_of("ForSequenceClassification", False)
    arrays["labels"] = np.array([1001.0, 1002.0, 1003.0], np.float32)  # bfloat16 has 1000 and 1004
    outputs = ours(arrays)
    assert outputs.logits.dtype == tf.bfloat16
    close(outputs.loss, np.square(np.asarray(outputs.logits, np.float32)[:, 0] - arrays["labels"]).mean(), 1e-6)


def test_a_keras_file_keeps_the_dtype_policy(policy, tmp_path):
    policy("mixed_bfloat16")
    ours, _ = pair("Model")
    ours.save(tmp_path / "model.keras")
    policy("float32")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert keras.config.dtype_policy().name == "float32"
    _, arrays = inputs_of("Model", True)
    assert again(arrays).pooler_output.dtype == tf.bfloat16
    agree(again(arrays), ours(arrays), 0)


def test_a_dtype_for_one_model_is_refused():
    with pytest.raises(UserError, match=r"^dtype: bfloat16; set it for all layers before: keras\.config\.set_dtype_policy"):
        keras_models.TFMobileBertModel(MobileBertConfig(**SMALL), dtype="bfloat16")


# ---- files


def test_a_keras_file_keeps_what_is_frozen(tmp_path):
    ours, _ = pair("ForSequenceClassification", num_hidden_layers=1)
    ours.mobilebert.trainable = False
    ours.mobilebert.encoder.layer[0].trainable = True
    assert 2 < len(ours.trainable_variables) < len(ours.weights)
    ours.compile(optimizer="adam")
    ours.fit(np.ones((4, 5), np.int32), np.array([0, 1, 1, 0]), verbose=0)
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for of in (lambda model: model.trainable_variables, lambda model: model.optimizer.variables):
        assert len(of(again)) == len(of(ours))
        assert all(np.array_equal(one, other) for one, other in zip(of(again), of(ours)))
    base, _ = pair("Model")
    base.trainable = False
    assert not type(base).from_config(base.get_config()).trainable_variables


@pytest.mark.parametrize("head", ["ForQuestionAnswering", "ForMultipleChoice"])
def test_a_saved_model_serves_any_batch_and_length(head, tmp_path):
    ours, _ = pair(head, num_hidden_layers=1)
    ours.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    _, arrays = inputs_of(head, True)
    arrays = {name: array.astype(np.int32) for name, array in arrays.items() if name in ("input_ids", "attention_mask")}
    arrays["token_type_ids"] = arrays["input_ids"] % 2
    for rows in (3, 1):
        inputs = {name: tf.constant(array[:rows, ..., : rows + 3]) for name, array in arrays.items()}
        found, wanted = served.serve(inputs), ours(inputs)
        assert set(found) == set(wanted)  # their order in the file is not fixed
        for name in wanted:
            close(found[name], wanted[name], 1e-6)
