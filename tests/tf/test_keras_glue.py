"""A small model learns SST-2 with Keras as with PyTorch, and its 8-bit file keeps what it learnt.

The rows are generated: both classes have the same words in another order, so a bag of embeddings is
right on half of them.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import torch
from keras_fit import Recipe, Rows, accuracy, compiled, logits_of_keras, logits_of_pytorch, shown, with_keras, with_pytorch

from mobilebert import MobileBertConfig, MobileBertForSequenceClassification
from mobilebert import tf as keras_models
from mobilebert.data.synthetic import SyntheticSource
from mobilebert.finetuning.task import BagOfEmbeddings

SEEDS = (0, 1, 2)
EPOCHS, BATCH, LENGTH = 4, 16, 12
# Two layers of the paper's student. The first weights are wide, so that it learns without
# pre-training.
FIELDS = {
    "hidden_size": 64,
    "embedding_size": 16,
    "intra_bottleneck_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "classifier_activation": False,
    "classifier_dropout": 0.1,
    "initializer_range": 0.1,
    "residual_init_scale": 0.5,
    "mask_value": "-6",
}


def tables() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Return 800 rows to train on, 2,000 to judge, and the size of the vocabulary."""
    train = SyntheticSource(0).table("sst2", "train")
    judged = pd.concat([SyntheticSource(seed).table("sst2", "validation") for seed in range(10)])
    words = {word: place for place, word in enumerate(sorted(set(" ".join(train["sentence"]).split())), 4)}

    def encoded(frame) -> dict[str, np.ndarray]:
        ids = np.zeros((len(frame), LENGTH), np.int64)
        for row, sentence in zip(ids, frame["sentence"]):
            tokens = [2, *(words.get(word, 1) for word in sentence.split()), 3]
            row[: len(tokens)] = tokens
        return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "labels": frame["label"].to_numpy(np.int64)}

    return encoded(train), encoded(judged), len(words) + 4


TRAIN, JUDGED, VOCABULARY = tables()
RECIPE = Recipe(1e-3, EPOCHS * len(TRAIN["labels"]) // BATCH)


def epochs(seed: int) -> list[list[Rows]]:
    """Return the batches of all epochs."""
    draw = np.random.default_rng(seed)
    orders = [draw.permutation(len(TRAIN["labels"])).reshape(-1, BATCH) for _ in range(EPOCHS)]
    return [[{name: array[rows] for name, array in TRAIN.items()} for rows in order] for order in orders]


def new_model(seed: int) -> MobileBertForSequenceClassification:
    """Return the model that both frameworks train."""
    torch.manual_seed(seed)
    return MobileBertForSequenceClassification(MobileBertConfig(vocab_size=VOCABULARY, **FIELDS))


@pytest.fixture(scope="module")
def trained():
    """Return a Keras model, trained with the last seed, and the accuracy with each."""
    model = keras_models.TFMobileBertForSequenceClassification(MobileBertConfig(vocab_size=VOCABULARY, **FIELDS))
    compiled(model, RECIPE)
    found = []
    for seed in SEEDS:
        weights = {name: value.numpy() for name, value in new_model(seed).state_dict().items()}
        with_keras(model, weights, epochs(seed), seed)
        found.append(accuracy(logits_of_keras(model, JUDGED), JUDGED))
    return model, found


def accuracy_with_pytorch(model, seed: int, recipe: Recipe = RECIPE) -> float:
    with_pytorch(model, epochs(seed), recipe, seed)
    return accuracy(logits_of_pytorch(model, JUDGED), JUDGED)


def test_fit_is_as_good_as_pytorch_from_the_same_weights(trained, capsys):
    _, ours = trained
    theirs = [accuracy_with_pytorch(new_model(seed), seed) for seed in SEEDS]
    bags = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        bags.append(accuracy_with_pytorch(BagOfEmbeddings(VOCABULARY, 64, 2), seed, replace(RECIPE, rate=1e-2)))
    with capsys.disabled():
        print(shown("SST-2, generated", {"Keras": ours, "PyTorch": theirs, "bag of embeddings": bags}), end="")
    assert abs(np.mean(ours) - np.mean(theirs)) <= 1.0
    assert min(ours) > max(bags) + 20


def int8_logits(path) -> np.ndarray:
    """Return the logits of a file for batches of 50 rows."""
    runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    arrays = {name: JUDGED[name].astype(np.int32) for name in ("input_ids", "attention_mask")}
    arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    starts = range(0, len(JUDGED["labels"]), 50)
    return np.concatenate([runner(**{name: array[at : at + 50] for name, array in arrays.items()})["logits"] for at in starts])


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ["dynamic int8", "int8"])
def test_an_8_bit_file_of_a_trained_model_with_no_norm_keeps_its_predictions(kind, fold, trained, tmp_path, capsys):
    samples = None
    if kind == "int8":
        inputs = {name: TRAIN[name].astype(np.int32) for name in ("input_ids", "attention_mask")}
        samples = [{name: array[at : at + 50] for name, array in inputs.items()} for at in range(0, 400, 50)]
    path, model = tmp_path / "model.tflite", trained[0]
    keras_models.export_tflite(model, path, length=LENGTH, batch=50, kind=kind, calibration=samples, fold=fold)
    wanted, found = logits_of_keras(model, JUDGED), int8_logits(path)
    same = 100 * (wanted.argmax(1) == found.argmax(1)).mean()
    distance = abs(found - wanted).max() / abs(wanted).max()
    with capsys.disabled():
        form = "folded" if fold else "plain"
        print(
            f"\n{kind}, {form}: accuracy {accuracy(found, JUDGED):.2f} of {accuracy(wanted, JUDGED):.2f}, "
            f"{same:.2f} % of the predictions the same, logits within {distance:.3f}",
            end="",
        )
    assert accuracy(found, JUDGED) >= accuracy(wanted, JUDGED) - 1.0
    assert same >= 99.0
