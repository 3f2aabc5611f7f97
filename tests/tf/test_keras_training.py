"""Keras models train with fit and by hand, and are saved, loaded and converted without a loss."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from family import HEADS, SMALL, close
from keras_family import DROPOUTS, agree, inputs_of, pair
from safetensors.numpy import load_file, save_file

import mobilebert
from mobilebert import MobileBertConfig
from mobilebert import tf as keras_models
from mobilebert.util.errors import UserError

GOLDEN = Path(__file__).parents[1] / "unit/modeling/from_tensorflow"


# ---- files


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_a_round_trip_through_keras_leaves_every_bit(head, tied, tmp_path):
    if not tied and head not in ("ForPreTraining", "ForMaskedLM"):
        pytest.skip("has no output matrix")
    _, theirs = pair(head, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path / "pytorch")
    ours = getattr(keras_models, f"TFMobileBert{head}").from_pretrained(tmp_path / "pytorch")
    ours.save_pretrained(tmp_path / "keras")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("pytorch", "keras"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    again = getattr(mobilebert, f"MobileBert{head}").from_pretrained(tmp_path / "keras").eval()
    assert again.config.architectures == [f"MobileBert{head}"]
    inputs, arrays = inputs_of(head, True)
    agree(ours(arrays), again(**inputs))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("pretraining", "ForPreTraining"),
        ("classification", "ForSequenceClassification"),
        ("answers", "ForQuestionAnswering"),
        ("next-sentence", "ForNextSentencePrediction"),
        ("masked", "ForMaskedLM"),
        ("choices", "ForMultipleChoice"),
        ("tokens", "ForTokenClassification"),
    ],
)
def test_an_h5_file_of_transformers_gives_its_outputs(name, head):
    model = getattr(keras_models, f"TFMobileBert{head}").from_pretrained(GOLDEN / name)
    arrays = np.load(GOLDEN / name / "outputs.npz")
    outputs = model({key[3:]: arrays[key] for key in arrays if key.startswith("in.")})
    for key, value in outputs.items():
        close(value, arrays[f"out.{key}.0"])


@pytest.mark.parametrize("kind", ["pickle", "shards", "wrapped", "half"])
def test_every_form_of_pytorch_s_weights_loads(kind, tmp_path, capsys):
    _, theirs = pair("ForMaskedLM")
    weights = theirs.state_dict()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB" if kind == "shards" else "1GB")
    assert (tmp_path / "model.safetensors").is_file() == (kind != "shards")
    if kind == "wrapped":
        save_file({f"module.{name}": value.numpy() for name, value in weights.items()}, tmp_path / "model.safetensors")
    elif kind != "shards":
        (tmp_path / "model.safetensors").unlink()
        weights = {f"_orig_mod.{name}": value.half() if kind == "half" else value for name, value in weights.items()}
        torch.save(weights, tmp_path / "pytorch_model.bin")
    ours = keras_models.TFMobileBertForMaskedLM.from_pretrained(tmp_path)
    inputs, arrays = inputs_of("ForMaskedLM", True)
    agree(ours(arrays), theirs(**inputs), 1e-2 if kind == "half" else 1e-5)
    said = capsys.readouterr().err
    assert ("float16 weights" in said) == (kind == "half")
    assert ("wrapper" in said) == (kind != "shards")


def test_safetensors_of_keras_load():
    models = [keras_models.TFMobileBertModel.from_pretrained(GOLDEN / name) for name in ("encoder", "encoder-safetensors")]
    wanted, found = (model.state_dict() for model in models)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_google_s_checkpoint_loads():
    model = keras_models.TFMobileBertForPreTraining.from_pretrained(GOLDEN / "google-student/mobilebert_variables.ckpt")
    close(
        model.state_dict()["mobilebert.encoder.layer.1.ffn.0.output.dense.weight"],
        load_file(GOLDEN / "google-student/by-transformers.safetensors")["mobilebert.encoder.layer.1.ffn.0.output.dense.weight"],
        0,
    )


@pytest.mark.parametrize("name", ["teacher", "student", "table-1", "tiny"])
def test_the_model_garden_s_checkpoint_gives_its_hidden_states(name):
    folder = GOLDEN.with_name("from_garden") / name
    model = keras_models.TFMobileBertModel.from_pretrained(folder)
    arrays = np.load(folder / "outputs.npz")
    inputs = {key[3:]: arrays[key] for key in arrays if key.startswith("in.")}
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    for at, state in enumerate(outputs.hidden_states):
        close(state, arrays[f"hidden_states.{at}"])
    for at, scores in enumerate(outputs.attentions):
        close(scores, arrays[f"attentions.{at}"])
    close(outputs.pooler_output, arrays["pooler_output"])


@pytest.mark.parametrize("head", HEADS)
def test_a_keras_file_holds_the_whole_model(head, tmp_path):
    ours, _ = pair(head)
    _, arrays = inputs_of(head, True)
    before = ours(arrays)
    ours.save(tmp_path / "model.keras")
    after = keras.saving.load_model(tmp_path / "model.keras")
    assert type(after) is type(ours)
    agree(after(arrays), before, 1e-7)


def test_a_head_that_the_checkpoint_lacks_is_new_and_a_missing_encoder_is_refused(tmp_path, capsys):
    _, theirs = pair("ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    model = keras_models.TFMobileBertForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    assert model.classifier.kernel.shape == (SMALL["hidden_size"], 4)
    assert "new weights, which the checkpoint lacks: " in capsys.readouterr().err
    with pytest.raises(UserError, match="has shape"):
        keras_models.TFMobileBertForMaskedLM.from_pretrained(tmp_path, vocab_size=49)
    with pytest.raises(UserError, match=r"it has no encoder\.layer\.2"):
        keras_models.TFMobileBertForMaskedLM.from_pretrained(tmp_path, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"^from_pretrained: 'num_label' is no field of the configuration; allowed: .*num_labels"):
        keras_models.TFMobileBertForMaskedLM.from_pretrained(tmp_path, num_label=3)
    with pytest.raises(UserError, match=r"no config\.json"):
        keras_models.TFMobileBertForMaskedLM.from_pretrained(tmp_path / "..")


def test_a_head_for_other_labels_is_new_if_the_caller_allows_it(tmp_path, capsys):
    ours, _ = pair("ForSequenceClassification")
    ours.save_pretrained(tmp_path)
    kind = keras_models.TFMobileBertForSequenceClassification
    with pytest.raises(UserError, match=r"classifier\.weight has shape \(3, 24\), the model's is \(5, 24\)"):
        kind.from_pretrained(tmp_path, num_labels=5)
    model = kind.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert "classifier.weight (5, 24), which was (3, 24)" in capsys.readouterr().err
    np.testing.assert_array_equal(
        model.state_dict()["mobilebert.pooler.dense.bias"], ours.state_dict()["mobilebert.pooler.dense.bias"]
    )
    with pytest.raises(UserError, match="has shape"):
        kind.from_pretrained(tmp_path, vocab_size=49, ignore_mismatched_sizes=True)


def test_integer_weights_are_refused(tmp_path):
    _, theirs = pair("ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    name = "mobilebert.encoder.layer.0.output.dense.bias"
    save_file(arrays | {name: arrays[name].astype(np.int8)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"output\.dense\.bias has type I8; allowed: "):
        keras_models.TFMobileBertForMaskedLM.from_pretrained(tmp_path)


# ---- training


def classifier(rows: int = 24):
    """Return a small Keras model, PyTorch's with the same weights, and rows with labels."""
    ours, theirs = pair("ForSequenceClassification", num_labels=2, normalization_type="layer_norm", num_hidden_layers=1)
    ids = np.random.default_rng(0).integers(1, SMALL["vocab_size"], (rows, 7)).astype(np.int32)
    return ours, theirs, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, (ids[:, 0] < 25).astype(np.int32)


def losses_of_pytorch(model, inputs, labels, steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=rate)
    tensors = {name: torch.from_numpy(value).long() for name, value in inputs.items()}
    found = []
    for _ in range(steps):
        loss = model(**tensors, labels=torch.from_numpy(labels).long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("labels_are", ["y", "input", "compiled", "for XLA"])
def test_fit_takes_the_steps_that_pytorch_takes(labels_are):
    ours, theirs, inputs, labels = classifier()
    compiled = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if labels_are == "compiled" else None
    xla = {"jit_compile": True} if labels_are == "for XLA" else {}
    ours.compile(keras.optimizers.SGD(0.2), compiled, metrics=["accuracy"] if labels_are in ("y", "input") else None, **xla)
    assert ours.jit_compile == bool(xla)
    x, y = (inputs | {"labels": labels}, None) if labels_are == "input" else (inputs, labels)
    history = ours.fit(x, y, batch_size=24, epochs=6, shuffle=False, verbose=0).history
    wanted = losses_of_pytorch(theirs, inputs, labels, 6, 0.2)
    assert history["loss"] == pytest.approx(wanted, rel=1e-4)
    assert wanted[-1] < wanted[0] - 0.01  # far more than the tolerance
    assert ("accuracy" in history) == (labels_are in ("y", "input"))
    predicted = ours.predict(inputs, batch_size=7, verbose=0)
    assert predicted.logits.shape == (24, 2)
    if labels_are == "y":
        assert ours.evaluate(inputs, labels, verbose=0)[1] == pytest.approx((predicted.logits.argmax(1) == labels).mean())


def test_a_loop_with_a_tape_takes_the_steps_that_pytorch_takes():
    ours, theirs, inputs, labels = classifier()
    optimizer = keras.optimizers.SGD(0.2)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = ours(inputs, labels=labels, training=True).loss
        variables = ours.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, [variable.value for variable in variables]), variables))
        return loss

    found = [float(step()) for _ in range(6)]
    assert found == pytest.approx(losses_of_pytorch(theirs, inputs, labels, 6, 0.2), rel=1e-4)


def test_answers_and_both_pretraining_losses_fit_with_labels_in_a_dictionary():
    for head in ("ForQuestionAnswering", "ForPreTraining"):
        ours, _ = pair(head, num_hidden_layers=1)
        _, arrays = inputs_of(head, True)
        wanted = float(ours(arrays).loss)
        labels = {name: arrays.pop(name) for name in ours.label_names}
        ours.compile(optimizer="sgd")
        assert ours.evaluate(arrays, labels, batch_size=3, verbose=0) == pytest.approx(wanted, rel=1e-5)
        if head == "ForQuestionAnswering":  # metrics are named by outputs, labels by arguments
            ours.compile(optimizer="sgd", metrics={"start_logits": ["accuracy"], "end_logits": ["accuracy"]})
            found = ours.evaluate(arrays, labels, batch_size=3, verbose=0, return_dict=True)
            right = (ours(arrays).end_logits.numpy().argmax(1) == labels["end_positions"]).mean()
            assert found["end_logits_accuracy"] == pytest.approx(right)
        assert np.isfinite(ours.fit(arrays, labels, batch_size=3, verbose=0).history["loss"]).all()


def test_a_compiled_model_trains_on_after_it_was_loaded(tmp_path):
    ours, _, inputs, labels = classifier()
    ours.compile(optimizer=keras.optimizers.Adam(1e-3))
    ours.fit(inputs, labels, verbose=0)
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.iterations == 1
    assert np.isfinite(again.fit(inputs, labels, verbose=0).history["loss"]).all()


def test_dropout_acts_in_training_alone():
    config = MobileBertConfig(**SMALL | DROPOUTS | {"hidden_dropout_prob": 0.5})
    model = keras_models.TFMobileBertModel(config)
    ids = np.ones((2, 5), np.int32)
    np.testing.assert_array_equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    assert not np.allclose(model(ids, training=True).last_hidden_state, model(ids, training=True).last_hidden_state)


def test_missing_labels_are_named():
    ours, _, inputs, labels = classifier()
    ours.compile(optimizer="sgd")
    with pytest.raises(UserError, match="fit: no labels; give y, or labels among the inputs"):
        ours.fit(inputs, verbose=0)
    with pytest.raises(UserError, match="takes no sample_weight or class_weight"):
        ours.fit(inputs, labels, sample_weight=np.ones(24), verbose=0)
