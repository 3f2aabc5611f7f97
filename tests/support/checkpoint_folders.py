"""Change the files of small checkpoints, and load them in every way."""

import json

import pytest

from mobilebert import MobileBertForSequenceClassification
from mobilebert.evaluation.checkpoints import load_checkpoint
from mobilebert.stages.checkpoint import load_baseline
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat"]
SIZES = {"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96}
OURS = SIZES | {"embedding_size": 8, "hidden_size": 16, "intra_bottleneck_size": 8, "intermediate_size": 8}
DISTIL = {"vocab_size": len(WORDS), "dim": 8, "hidden_dim": 8, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 96}


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


LOADERS = {
    "evaluate, predict, submission": lambda folder: load_checkpoint(str(folder), TASKS["sst2"]),
    "a baseline": lambda folder: load_baseline(str(folder), "main"),
    "from_pretrained": MobileBertForSequenceClassification.from_pretrained,
}


def refusal(work) -> str:
    with pytest.raises(UserError) as error:
        work()
    assert "\n" not in str(error.value)
    assert "mobilebert-" not in str(error.value)  # the temporary folder
    return str(error.value)
