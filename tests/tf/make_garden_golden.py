"""Write the golden files of tests/unit/modeling/from_garden with TensorFlow's model garden.

They are kept in the repository, because the garden needs packages of its own. To make them again:
python -m venv garden
garden/bin/pip install tensorflow-cpu==2.20.* tf-keras==2.20.* gin-config scipy pyyaml
garden/bin/pip install sentencepiece psutil pandas tensorflow-hub
garden/bin/pip install --no-deps tf-models-official==2.20.* tensorflow-text==2.20.*
garden/bin/pip install --no-deps tensorflow-model-optimization tensorflow-datasets immutabledict
garden/bin/python tests/tf/make_garden_golden.py
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tf_keras
import yaml
from official.nlp.modeling import layers, models
from official.projects.mobilebert import model_utils

model_utils.tf_keras = tf_keras  # the module uses this name and does not import it

GOLDEN = Path(__file__).parents[1] / "unit/modeling/from_garden"
SIZES = {
    "vocab_size": 29,
    "embedding_size": 8,
    "hidden_size": 16,
    "intra_bottleneck_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "trigram_input": True,
    "use_bottleneck": True,
}
OPT = {"hidden_act": "relu", "normalization_type": "no_norm", "classifier_activation": False}
MODELS = {
    "teacher": {"hidden_act": "gelu", "num_hidden_layers": 2},
    "student": OPT | {"key_query_shared_bottleneck": True, "num_feedforward_networks": 3, "num_hidden_layers": 2},
    "table-1": OPT | {"num_feedforward_networks": 2, "num_hidden_layers": 1},
    "tiny": OPT | {"use_bottleneck_attention": True, "num_feedforward_networks": 2, "num_hidden_layers": 1},
}
IN_GARDEN = {  # keys of the garden's parameters that have another name in Google's JSON
    "word_vocab_size": "vocab_size",
    "word_embed_size": "embedding_size",
    "max_sequence_length": "max_position_embeddings",
    "num_blocks": "num_hidden_layers",
    "hidden_activation": "hidden_act",
}


def pretrainer(values: dict):
    """Return the garden's model with weights so wide that each matters."""
    random = np.random.default_rng(len(values))
    config = model_utils.BertConfig(29).to_dict() | SIZES | values
    model = model_utils.create_mobilebert_pretrainer(model_utils.BertConfig.from_dict(config))
    if values == MODELS["student"]:  # with the head of the garden's distillation
        head = layers.ClassificationHead(inner_dim=SIZES["hidden_size"], num_classes=2, name="next_sentence")
        model = models.BertPretrainerV2(model.encoder_network, customized_masked_lm=model.masked_lm, classification_heads=[head])
        model(model.inputs)
    for variable in model.weights:
        is_scale = variable.name.endswith("gamma:0")
        wide = 0.3 if variable.shape.rank == 1 else 0.5
        variable.assign(float(is_scale) + wide * random.standard_normal(variable.shape))
    return model


def save(name: str, model, folder: Path) -> None:
    """Write the checkpoint in one of the ways in which the garden's users write it."""
    if name == "student":  # as the garden's converter and its distillation do
        tf.train.Checkpoint(**model.checkpoint_items).save(str(folder / "ckpt"))
    elif name == "teacher":  # as its trainer does
        optimizer = tf_keras.optimizers.legacy.SGD(0.0, momentum=0.9)
        optimizer.apply_gradients([(tf.zeros_like(model.weights[0]), model.weights[0])])
        step = tf.Variable(7, dtype=tf.int64)
        tf.train.Checkpoint(model=model, optimizer=optimizer, global_step=step).save(str(folder / "ckpt"))
    elif name == "table-1":
        model.encoder_network.save_weights(str(folder / "encoder"))
    else:
        tf.train.Checkpoint(encoder=model.encoder_network).save(str(folder / "ckpt"))
    (folder / "checkpoint").unlink()


def write(name: str, folder: Path) -> None:
    """Write a checkpoint with its configuration, and beside them inputs and outputs."""
    folder.mkdir(parents=True)
    model = pretrainer(MODELS[name])
    save(name, model, folder)
    values = SIZES | MODELS[name]
    if name == "tiny":
        other = {google: garden for garden, google in IN_GARDEN.items()}
        encoder = {other.get(key, key): value for key, value in values.items() if key not in ("trigram_input", "use_bottleneck")}
        params = {"task": {"model": {"encoder": {"type": "mobilebert", "mobilebert": encoder}}}}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
    else:
        (folder / "bert_config.json").write_text(json.dumps(values, indent=2) + "\n")
    ids = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 6))
    mask = np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    inputs = dict(zip(("input_word_ids", "input_mask", "input_type_ids"), (tf.constant(v, tf.int32) for v in arrays.values())))
    outputs = model.encoder_network(inputs)
    saved = {f"in.{key}": value for key, value in arrays.items()}
    saved |= {f"hidden_states.{at}": state.numpy() for at, state in enumerate(outputs["encoder_outputs"])}
    saved |= {f"attentions.{at}": scores.numpy() for at, scores in enumerate(outputs["attention_scores"])}
    saved["pooler_output"] = outputs["pooled_output"].numpy()
    for head in model.classification_heads:
        saved["next_sentence_pooled"] = head(outputs["sequence_output"], only_project=True).numpy()
    positions = tf.constant(np.tile(np.arange(6), (2, 1)), tf.int32)
    saved["prediction_logits"] = model.masked_lm(outputs["sequence_output"], positions).numpy()
    np.savez_compressed(folder / "outputs.npz", **saved)


if __name__ == "__main__":
    golden = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    shutil.rmtree(golden, ignore_errors=True)
    for model_name in MODELS:
        write(model_name, golden / model_name)
