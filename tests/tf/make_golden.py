"""Write the golden files of tests/unit/modeling/from_tensorflow with transformers 4's TF classes.

They are kept in the repository, because transformers 5 has no such classes. To make them again:
python -m venv old
old/bin/pip install transformers==4.49.* tensorflow-cpu==2.19.* tf-keras==2.19.* torch
old/bin/python tests/tf/make_golden.py
"""

import json
import os
import shutil
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import transformers
from safetensors.numpy import save_file
from transformers.models.mobilebert.modeling_mobilebert import load_tf_weights_in_mobilebert

GOLDEN = Path(__file__).parents[1] / "unit/modeling/from_tensorflow"
SIZES = {
    "vocab_size": 29,
    "embedding_size": 8,
    "hidden_size": 16,
    "intra_bottleneck_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_feedforward_networks": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
}
TINY = {"use_bottleneck_attention": True, "key_query_shared_bottleneck": False}
# The epsilon is torch's, because transformers' PyTorch class forgets it in two norms and its TF
# class does not.
LAYER_NORM = {"normalization_type": "layer_norm", "hidden_act": "gelu", "layer_norm_eps": 1e-5}
H5 = {  # head, fields
    "pretraining": ("ForPreTraining", {}),
    "classification": ("ForSequenceClassification", TINY | LAYER_NORM | {"num_labels": 3, "num_hidden_layers": 1}),
    "answers": ("ForQuestionAnswering", {"use_bottleneck": False, "num_hidden_layers": 1}),
    "encoder": ("Model", {"num_feedforward_networks": 1, "num_hidden_layers": 1}),
}


def write_h5(name: str, head: str, fields: dict, random: np.random.Generator) -> None:
    """Write config.json and tf_model.h5, and beside them inputs and outputs."""
    model = getattr(transformers, f"TFMobileBert{head}")(transformers.MobileBertConfig(**SIZES | fields))
    ids = random.integers(0, SIZES["vocab_size"], (2, 6))
    mask = np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])
    if head == "ForMultipleChoice":  # the second choice is the first one backwards
        ids, mask = (np.stack([rows, rows[:, ::-1]], axis=1) for rows in (ids, mask))
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    model(**inputs)
    for variable in model.weights:  # wide, so that each weight matters
        wide = 0.3 if variable.shape.rank == 1 else 0.5
        start = 1.0 if variable.name.endswith(("gamma:0", "LayerNorm/weight:0")) else 0.0
        variable.assign(start + wide * random.standard_normal(variable.shape))
    folder = GOLDEN / name
    model.save_pretrained(folder)
    if head == "Model":  # transformers' other format, with the names of Keras
        model.save_pretrained(GOLDEN / f"{name}-safetensors", safe_serialization=True)
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    saved = {f"in.{key}": value for key, value in inputs.items()}
    for key, value in outputs.items():
        several = value if isinstance(value, tuple) else [value]
        saved |= {f"out.{key}.{index}": part.numpy() for index, part in enumerate(several)}
    np.savez_compressed(folder / "outputs.npz", **saved)


def google_variables(config: dict) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the variables that google-research/mobilebert makes."""
    inner, outer, narrow = config["intra_bottleneck_size"], config["hidden_size"], config["intermediate_size"]
    norm = "FakeLayerNorm" if config.get("normalization_type") == "no_norm" else "LayerNorm"
    found: dict[str, tuple[int, ...]] = {}

    def dense(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)})

    def scale(scope: str, width: int, kind: str = norm) -> None:
        found.update({f"{scope}/{kind}/beta": (width,), f"{scope}/{kind}/gamma": (width,)})

    found["bert/embeddings/word_embeddings"] = (config["vocab_size"], config["embedding_size"])
    found["bert/embeddings/token_type_embeddings"] = (config["type_vocab_size"], outer)
    found["bert/embeddings/position_embeddings"] = (config["max_position_embeddings"], outer)
    dense("bert/embeddings/embedding_transformation", 3 * config["embedding_size"], outer)
    scale("bert/embeddings", outer)
    for layer in range(config["num_hidden_layers"]):
        scope = f"bert/encoder/layer_{layer}"
        dense(f"{scope}/bottleneck/input/dense", outer, inner)
        scale(f"{scope}/bottleneck/input", inner)
        if config.get("key_query_shared_bottleneck"):
            dense(f"{scope}/bottleneck/attention/dense", outer, inner)
            scale(f"{scope}/bottleneck/attention", inner)
        narrowed = config.get("key_query_shared_bottleneck") or config.get("use_bottleneck_attention")
        for part in ("query", "key"):
            dense(f"{scope}/attention/self/{part}", inner if narrowed else outer, inner)
        dense(f"{scope}/attention/self/value", inner if config.get("use_bottleneck_attention") else outer, inner)
        dense(f"{scope}/attention/output/dense", inner, inner)
        scale(f"{scope}/attention/output", inner)
        for number in range(config.get("num_feedforward_networks", 1)):
            last = number == config.get("num_feedforward_networks", 1) - 1
            inside = scope if last else f"{scope}/ffn_layer_{number}"
            dense(f"{inside}/intermediate/dense", inner, narrow)
            dense(f"{inside}/output/dense", narrow, inner)
            scale(f"{inside}/output", inner)
        dense(f"{scope}/output/bottleneck/dense", inner, outer)
        scale(f"{scope}/output/bottleneck", outer)
    if config.get("classifier_activation", True):
        dense("bert/pooler/dense", outer, outer)
    dense("cls/predictions/transform/dense", outer, outer)
    scale("cls/predictions/transform", outer, "LayerNorm")
    found["cls/predictions/output_bias"] = (config["vocab_size"],)
    found["cls/predictions/extra_output_weights"] = (config["vocab_size"], outer - config["embedding_size"])
    found |= {"cls/seq_relationship/output_weights": (2, outer), "cls/seq_relationship/output_bias": (2,)}
    return found


def write_google(name: str, config: dict, random: np.random.Generator) -> Path:
    """Write a checkpoint of TensorFlow 1 with its JSON; return its prefix."""
    folder = GOLDEN / name
    folder.mkdir(parents=True)
    (folder / "bert_config.json").write_text(json.dumps(config, indent=2) + "\n")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for variable, shape in google_variables(config).items():
            values = random.standard_normal(shape).astype(np.float32)
            tf.compat.v1.get_variable(variable, initializer=values)
        table = np.zeros((config["vocab_size"], config["embedding_size"]), np.float32)
        for slot in ("adam_m", "adam_v"):
            tf.compat.v1.get_variable(f"bert/embeddings/word_embeddings/{slot}", initializer=table)
        tf.compat.v1.get_variable("global_step", initializer=np.int64(740000))
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver()
        return Path(saver.save(session, str(folder / "mobilebert_variables.ckpt"), write_meta_graph=False, write_state=False))


def main() -> None:
    """Write all golden files."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    random = np.random.default_rng(0)
    tf.random.set_seed(0)
    for name, (head, fields) in H5.items():
        write_h5(name, head, fields, random)
    switches = {"embedding_size", "use_bottleneck", "num_feedforward_networks"}
    google = {key: value for key, value in SIZES.items() if key not in switches}
    google |= {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.0, "initializer_range": 0.02}
    google |= {"type_vocab_size": 2, "embedding_size": 8, "trigram_input": True, "use_bottleneck": True}
    optimized = {"hidden_act": "relu", "normalization_type": "no_norm", "classifier_activation": False}
    student = google | optimized | {"key_query_shared_bottleneck": True, "num_feedforward_networks": 2}
    prefix = write_google("google-student", student, random)
    # transformers 4 reads the same file.
    model = transformers.MobileBertForPreTraining(transformers.MobileBertConfig(**student))
    load_tf_weights_in_mobilebert(model, model.config, str(prefix))
    model.tie_weights()
    arrays = {key: value.numpy().copy() for key, value in model.state_dict().items() if "decoder" not in key}
    save_file(arrays, GOLDEN / "google-student" / "by-transformers.safetensors")
    # Its attention scores are so large that the mask of TensorFlow's classes, -10000, does not hide
    # padding.
    write_h5("next-sentence", "ForNextSentencePrediction", {}, np.random.default_rng(1))
    write_h5("masked", "ForMaskedLM", {"num_hidden_layers": 1}, np.random.default_rng(2))
    # LayerNorm: NoNorm with weights this wide multiplies float32's rounding, to 5e-5 of the logits.
    write_h5("choices", "ForMultipleChoice", LAYER_NORM | {"num_hidden_layers": 1}, np.random.default_rng(3))
    write_h5("tokens", "ForTokenClassification", TINY | {"num_hidden_layers": 1}, np.random.default_rng(4))
    # transformers cannot build the teacher. Its JSON leaves out what is Google's default.
    write_google("google-teacher", google | {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "num_hidden_layers": 1}, random)


if __name__ == "__main__":
    main()
