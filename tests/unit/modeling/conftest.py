"""Small checkpoints to change."""

import shutil

import pytest
import torch
import transformers
from checkpoint_folders import DISTIL, OURS, SIZES, WORDS
from tokenizers import BertWordPieceTokenizer

from mobilebert import MobileBertConfig, MobileBertForSequenceClassification


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Return name -> a folder with a fine-tuned model of two classes."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    small = transformers.BertConfig(**SIZES, hidden_size=8, intermediate_size=8)
    for name, model in (
        ("mobilebert", MobileBertForSequenceClassification(MobileBertConfig(**OURS))),
        ("bert", transformers.BertForSequenceClassification(small)),
        ("distilbert", transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**DISTIL))),
    ):
        model.save_pretrained(root / name)
        BertWordPieceTokenizer({word: code for code, word in enumerate(WORDS)}).save(str(root / name / "tokenizer.json"))
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made["mobilebert"], tmp_path / "model")
    return tmp_path / "model"
