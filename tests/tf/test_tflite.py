"""A .tflite file gives the outputs of the model that it was written from."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import LAYOUTS, SMALL, close
from keras_family import agree, inputs_of, pair

from mobilebert import tf as keras_models
from mobilebert.util.errors import UserError

SHAPE = (2, 7)


def batch(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    ids = random.integers(1, SMALL["vocab_size"], SHAPE).astype(np.int32)
    mask = (np.arange(SHAPE[1]) < random.integers(3, SHAPE[1] + 1, (SHAPE[0], 1))).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}


def outputs(path, inputs) -> dict[str, np.ndarray]:
    runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return runner(**inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folded_model_has_the_outputs_of_the_model(layout):
    ours, _ = pair("ForPreTraining", **LAYOUTS[layout])
    _, arrays = inputs_of("ForPreTraining", True)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    agree(keras_models.folded_model(ours)(arrays, **wanted), ours(arrays, **wanted))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("head", ["ForQuestionAnswering", "ForSequenceClassification"])
def test_a_float_file_equals_the_model(head, fold, tmp_path):
    ours, _ = pair(head)
    keras_models.export_tflite(ours, tmp_path / "model.tflite", length=7, batch=2, fold=fold)
    wanted, found = ours(batch(0)), outputs(tmp_path / "model.tflite", batch(0))
    assert set(found) == set(wanted)
    for name in wanted:
        close(found[name], wanted[name])


@pytest.mark.parametrize("fold", [False, True])
def test_a_model_that_computes_in_bfloat16_is_written_in_float32(fold, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        ours, _ = pair("ForQuestionAnswering", num_hidden_layers=1)
        keras_models.export_tflite(ours, tmp_path / "model.tflite", length=7, batch=2, fold=fold)
    finally:
        keras.config.set_dtype_policy(before)
    wanted, found = pair("ForQuestionAnswering", num_hidden_layers=1)[0](batch(0)), outputs(tmp_path / "model.tflite", batch(0))
    for name in wanted:
        close(found[name], wanted[name])


@pytest.mark.parametrize("kind", ["float16", "dynamic int8", "int8"])
def test_a_smaller_file_is_near_the_model(kind, tmp_path):
    # LayerNorm: NoNorm with weights this wide spans too many decades for 256 steps.
    fields = {"hidden_size": 128, "intra_bottleneck_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    ours, _ = pair("ForSequenceClassification", **fields, mask_value="-6", normalization_type="layer_norm")
    samples = [batch(seed) for seed in range(1, 40)] if kind == "int8" else None
    keras_models.export_tflite(ours, tmp_path / "float.tflite", length=7, batch=2)
    keras_models.export_tflite(ours, tmp_path / "small.tflite", length=7, batch=2, kind=kind, calibration=samples)
    sizes = {name: (tmp_path / f"{name}.tflite").stat().st_size for name in ("float", "small")}
    assert sizes["small"] < 0.7 * sizes["float"]
    fresh = [batch(seed) for seed in range(50, 56)]
    wanted = np.concatenate([ours(inputs).logits for inputs in fresh])
    found = np.concatenate([outputs(tmp_path / "small.tflite", inputs)["logits"] for inputs in fresh])
    assert not np.array_equal(found, wanted)
    close(found, wanted, 0.01 if kind == "float16" else 0.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"length": 17}, "allowed are lengths of 1 to 16"),
        ({"length": 7, "kind": "int4"}, "kind: 'int4' is unknown"),
        ({"length": 7, "kind": "int8"}, "kind int8 needs inputs to measure ranges on"),
        ({"length": 7, "calibration": []}, "the other kinds take none"),
        ({"length": 7, "kind": "int8", "calibration": [{}]}, "mask_value: 'min' leaves the scores none of the 256 steps"),
    ],
)
def test_contradicting_arguments_are_named(arguments, says, tmp_path):
    ours, _ = pair("ForSequenceClassification")
    with pytest.raises(UserError, match=says):
        keras_models.export_tflite(ours, tmp_path / "model.tflite", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_layer_norm_model_cannot_be_folded(tmp_path):
    ours, _ = pair("ForSequenceClassification", normalization_type="layer_norm")
    with pytest.raises(UserError, match="is not a MobileBERT model with no_norm"):
        keras_models.export_tflite(ours, tmp_path / "model.tflite", length=7, fold=True)
