"""A pre-trained model learns real SST-2 with Keras as with PyTorch, and beats a bag of embeddings.

The model is $MOBILEBERT_MODEL, a folder with its tokenizer, else the student from scratch of the
study `evening`. The numbers were fixed before the first run.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_fit import Recipe, Rows, accuracy, compiled, logits_of_keras, logits_of_pytorch, shown, with_keras, with_pytorch

from mobilebert import MobileBertForSequenceClassification
from mobilebert import tf as keras_models
from mobilebert.data.examples import Examples, encode, sample
from mobilebert.data.sources import LocalSource
from mobilebert.data.tokenizer import load_tokenizer
from mobilebert.finetuning.task import BagOfEmbeddings

SEEDS = (0, 1, 2)
ROWS, EPOCHS, BATCH, LENGTH = 8000, 3, 32, 64
STEPS = EPOCHS * ROWS // BATCH
RECIPE = Recipe(1e-3, STEPS, warmup=STEPS // 10, decay=0.01)
BAG_RATE = 1e-2  # that of the study `evening`
STUDENT = Path(__file__).parents[2] / "results/evening/pretrain/scratch/model"


@pytest.fixture
def pretrained() -> Path:
    """Return the folder of a pre-trained model; skip the test if there is none."""
    folder = Path(os.environ.get("MOBILEBERT_MODEL", STUDENT))
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"no pre-trained model with tokenizer.json in {folder} (set MOBILEBERT_MODEL)")
    return folder


def epochs(examples: Examples, seed: int) -> list[list[Rows]]:
    """Return the batches of all epochs, each padded to its longest row."""
    return [[examples.batch(rows) for rows in examples.epoch(BATCH, seed, epoch)] for epoch in range(EPOCHS)]


@pytest.mark.timeout(3600)  # six fits: four minutes on an idle core
def test_fit_on_real_rows_is_as_good_as_pytorch_from_the_same_weights(real_data, pretrained, capsys):
    tokenizer, source = load_tokenizer(pretrained), LocalSource(real_data)
    train = encode(tokenizer, "sst2", sample(source.table("sst2", "train"), ROWS, 0), LENGTH)
    dev = encode(tokenizer, "sst2", source.table("sst2", "validation"), LENGTH)
    judged = dev.batch(np.arange(len(dev)))

    def new_model(seed: int):
        torch.manual_seed(seed)
        return MobileBertForSequenceClassification.from_pretrained(pretrained, num_labels=2, classifier_dropout=0.1)

    def accuracy_with_pytorch(model, recipe: Recipe, seed: int) -> float:
        with_pytorch(model, epochs(train, seed), recipe, seed)
        return accuracy(logits_of_pytorch(model, judged), judged)

    config = new_model(0).config
    keras_model = compiled(keras_models.TFMobileBertForSequenceClassification(config), RECIPE)
    ours, theirs, bags = [], [], []
    for seed in SEEDS:
        weights = {name: value.numpy() for name, value in new_model(seed).state_dict().items()}
        with_keras(keras_model, weights, epochs(train, seed), seed)
        ours.append(accuracy(logits_of_keras(keras_model, judged), judged))
        theirs.append(accuracy_with_pytorch(new_model(seed), RECIPE, seed))
        torch.manual_seed(seed)
        bag = BagOfEmbeddings(config.vocab_size, config.hidden_size, 2)
        bags.append(accuracy_with_pytorch(bag, replace(RECIPE, rate=BAG_RATE), seed))
    with capsys.disabled():
        print(shown(f"SST-2, {ROWS:,} rows", {"Keras": ours, "PyTorch": theirs, "bag of embeddings": bags}), end="")
    assert abs(np.mean(ours) - np.mean(theirs)) <= 1.0
    assert np.mean(ours) >= np.mean(bags)
