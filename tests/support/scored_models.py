"""Ask `mobilebert evaluate` and `predict` about small models, and make their rows."""

import numpy as np
import pandas as pd
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertForSequenceClassification,
)

from mobilebert.cli.main import main
from mobilebert.deployment.export import export_onnx
from mobilebert.deployment.quantize import quantize_int8
from mobilebert.modeling import tasks
from mobilebert.study.tasks import TASKS

WORDS = ["red", "green", "blue", "cat", "dog", "mat", "sat", "on", "who", "?", "."]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SMALL = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,  # so that rows differ in their classes
}
MOBILEBERT = SMALL | {"embedding_size": 16, "intra_bottleneck_size": 16}
ROWS = 30
DRAW = np.random.default_rng(2)


def sentences(count, longest=12):
    return [" ".join(DRAW.choice(WORDS, DRAW.integers(1, longest))) for _ in range(count)]


def table(name):
    task = TASKS[name]
    if task.is_squad:
        rows = []
        for row in range(ROWS):
            words = DRAW.choice(WORDS, DRAW.integers(10, 80)).tolist()
            start, answer = len(" ".join(words[:4])) + 1, words[4]
            answers = {"text": [answer], "answer_start": [start]}
            if name == "squad_v2.0" and row % 3 == 0:
                answers = {"text": [], "answer_start": []}
            rows.append({"id": f"q{row}", "title": "t", "context": " ".join(words), "question": "who ?", "answers": answers})
        return pd.DataFrame(rows)
    labels = DRAW.integers(0, 26, ROWS) / 5 if task.is_regression else DRAW.integers(0, task.num_labels, ROWS)
    return pd.DataFrame(
        {column: sentences(ROWS) for column in task.text_columns} | {"label": labels, "idx": range(50, 50 + ROWS)}
    )


def add_tokenizer(folder):
    BertWordPieceTokenizer({token: code for code, token in enumerate(VOCABULARY)}, lowercase=True).save(
        str(folder / "tokenizer.json")
    )


def run(capsys, *arguments):
    assert main([*map(str, arguments), "--threads", "1"]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main([*map(str, arguments), "--threads", "1"]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = [text for text in found.err.splitlines() if text.startswith("mobilebert:")]
    assert "Traceback" not in found.err
    return line


def loaded(folder, name):
    kinds = {"bert": BertForSequenceClassification, "distilbert": DistilBertForSequenceClassification}
    kinds["mobilebert-qa"] = tasks.MobileBertForQuestionAnswering
    return kinds.get(name, tasks.MobileBertForSequenceClassification).from_pretrained(folder).eval()


def logits_of(folder, name, frame, columns):
    """Return logits of every row alone, without padding, through transformers' own tokenizer."""
    model, tokenizer = loaded(folder, name), BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    found = []
    for row in frame[list(columns)].itertuples(index=False):
        inputs = tokenizer(*row, return_tensors="pt", return_token_type_ids=name != "distilbert")
        with torch.no_grad():
            found.append(model(**inputs).logits[0].numpy())
    return np.array(found)


def onnx_folder(checkpoint, name, folder):
    folder.mkdir(parents=True)
    export_onnx(loaded(checkpoint, name), folder / "float.onnx", length=16)
    quantize_int8(folder / "float.onnx", folder / "model.int8.onnx")
    (folder / "float.onnx").rename(folder / "other.onnx")
    return folder
