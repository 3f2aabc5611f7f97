"""Auto classes and pipelines give this package's models only after registration."""

import subprocess
import sys

import torch
from family import SMALL

import mobilebert
from mobilebert import MobileBertConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "a", "dog", "ran", "##s", "."]
CODE = """
import sys, torch, transformers, mobilebert
from transformers import pipeline

masked, tuned = sys.argv[1:]
assert type(transformers.AutoModelForMaskedLM.from_pretrained(masked)) is transformers.MobileBertForMaskedLM
mobilebert.register_auto_classes()
mobilebert.register_auto_classes()  # again is no error
config = transformers.AutoConfig.from_pretrained(masked)
assert type(config) is mobilebert.MobileBertConfig
for kind in (
    "", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction", "ForSequenceClassification", "ForMultipleChoice",
    "ForTokenClassification", "ForQuestionAnswering",
):
    built = getattr(transformers, "AutoModel" + kind).from_config(config)
    assert type(built) is getattr(mobilebert, "MobileBert" + (kind or "Model")), kind

fill = pipeline("fill-mask", model=masked, device="cpu")
assert type(fill.model) is mobilebert.MobileBertForMaskedLM
found = fill("the cat [MASK] on the mat .", top_k=3)
inputs = fill.tokenizer("the cat [MASK] on the mat .", return_tensors="pt")
chances = fill.model(**inputs).logits[0, 3].softmax(-1).topk(3)
assert [item["token"] for item in found] == chances.indices.tolist()
assert torch.allclose(torch.tensor([item["score"] for item in found]), chances.values, atol=1e-6)

classify = pipeline("text-classification", model=tuned, device="cpu")
assert type(classify.model) is mobilebert.MobileBertForSequenceClassification
texts = ["the cat sat .", "a dog ran on the mats ."]
for text, item in zip(texts, classify(texts, batch_size=2)):
    logits = classify.model(**classify.tokenizer(text, return_tensors="pt")).logits[0]
    assert item["label"] == classify.model.config.id2label[logits.argmax().item()]
print("done")
"""


def test_auto_classes_and_pipelines_after_registration(tmp_path):
    """Run in a process of its own, since registering cannot be undone."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    tokenizer = mobilebert.MobileBertTokenizerFast(str(vocabulary))
    folders = []
    for head in ("ForMaskedLM", "ForSequenceClassification"):
        torch.manual_seed(0)
        # Without the trigram a padded sentence gives exactly the same as alone.
        config = MobileBertConfig(**SMALL | {"vocab_size": len(WORDS), "trigram_input": False}, num_labels=3)
        folders.append(str(tmp_path / head))
        getattr(mobilebert, f"MobileBert{head}")(config).save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    done = subprocess.run([sys.executable, "-c", CODE, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
