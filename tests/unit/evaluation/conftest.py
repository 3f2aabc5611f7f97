"""Data and checkpoints for the tests of `mobilebert evaluate` and `predict`."""

import pytest
import torch
from scored_models import DRAW, MOBILEBERT, SMALL, VOCABULARY, add_tokenizer, table
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from mobilebert.modeling import MobileBertConfig, MobileBertForPreTraining, MobileBertModel, tasks
from mobilebert.study.tasks import TASKS


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("sst2", "mnli", "stsb", "squad_v1.1", "squad_v2.0"):
        task = TASKS[name]
        for split in ("validation", "validation_mismatched"):
            if split in task.splits:
                path = folder / task.folder / f"{task.splits[split]}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                table(name).to_parquet(path)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, data):
    """Return name -> a folder in Hugging Face layout.

    `data` is made first, so that both draw the same numbers whichever test runs first.
    """
    root, found = tmp_path_factory.mktemp("models"), {}

    def keep(name, model):
        found[name] = root / name
        if hasattr(model, "classifier"):  # the median output is 0, so that no class is always the largest
            with torch.no_grad():
                ids = torch.from_numpy(DRAW.integers(5, len(VOCABULARY), (50, 8)))
                model.classifier.bias -= model.eval()(input_ids=ids).logits.median(0).values
        model.save_pretrained(found[name])
        add_tokenizer(found[name])

    torch.manual_seed(4)
    for labels in (1, 2, 3):
        config = MobileBertConfig(**MOBILEBERT, num_labels=labels)
        keep(f"mobilebert-{labels}", tasks.MobileBertForSequenceClassification(config))
    keep("mobilebert-qa", tasks.MobileBertForQuestionAnswering(MobileBertConfig(**MOBILEBERT)))
    keep("pretrained", MobileBertForPreTraining(MobileBertConfig(**MOBILEBERT)))
    keep("encoder", MobileBertModel(MobileBertConfig(**MOBILEBERT)))
    keep("bert", BertForSequenceClassification(BertConfig(**SMALL)))
    small = {"vocab_size": len(VOCABULARY), "dim": 32, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "initializer_range": 0.2}
    keep("distilbert", DistilBertForSequenceClassification(DistilBertConfig(**small, max_position_embeddings=96)))
    return found
