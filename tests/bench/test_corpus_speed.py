"""Compare text to masked batches of length 128 with transformers' fast tokenizer and collator.

The verdict is a ratio in one run.
"""

import os
from itertools import islice
from pathlib import Path

import pytest
import torch

from mobilebert.data.corpus import prepare_corpus
from mobilebert.data.segment_pairs import Pairs
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer

LENGTH, BATCH, ROUNDS = 128, 256, 3
TIMED, TRIED = 8_000_000, 3_000_000  # characters to read


class Part:
    """The first documents of a source, in memory: reading and decompressing are not compared."""

    spec = "part"

    def __init__(self, source, characters):
        self.texts, read = [], 0
        for document in source.documents():
            self.texts.append(document)
            read += len(document)
            if read >= characters:
                break

    def documents(self):
        return iter(self.texts)


@pytest.fixture(scope="module")
def sides(tmp_path_factory, timed):
    """Return both sides as functions that return the tokens in masked batches; one thread."""
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = tmp_path_factory.mktemp("corpus")
    real = Path(os.environ.get("MOBILEBERT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    source = open_source(f"local:{real}" if (real / "SHA256SUMS").is_file() else "synthetic", documents=5000)
    tokenizer = build_tokenizer(source, folder / "tokenizer", None)
    theirs = BertTokenizerFast.from_pretrained(folder / "tokenizer")
    collate = DataCollatorForLanguageModeling(theirs, mlm_probability=0.15)
    part = Part(source, TIMED if timed else TRIED)

    def ours():
        """Write token files; then build tensors of segment pairs, NSP labels and masks."""
        prepare_corpus(part, tokenizer, folder / "out", heldout_share=0.01, squad_dev_paragraphs=())
        pairs, tokens = Pairs(folder / "out", "train", length=LENGTH, tokenizer=tokenizer, seed=0), 0
        for step in range(len(pairs) // BATCH):
            batch = {name: torch.from_numpy(array) for name, array in pairs.batch(step, BATCH).items()}
            tokens += int(batch["attention_mask"].sum()) - 3 * BATCH
        return tokens

    def transformers():
        """Follow their run_mlm.py: ids, blocks of 126 tokens, special tokens, masks. There are no
        sentences, pairs or labels."""
        ids = [token for row in theirs(part.texts, add_special_tokens=False)["input_ids"] for token in row]
        blocks, tokens = (ids[start : start + LENGTH - 2] for start in range(0, len(ids) - LENGTH + 3, LENGTH - 2)), 0
        while rows := list(islice(blocks, BATCH)):
            rows = [{"input_ids": [theirs.cls_token_id, *row, theirs.sep_token_id]} for row in rows]
            tokens += collate(rows)["input_ids"].numel() - 2 * len(rows)
        return tokens

    return {"ours": ours, "transformers": transformers}


@pytest.mark.parametrize("which", ["ours", "transformers"])
def test_corpus(benchmark, sides, which):
    benchmark.group = f"text to masked batches of {BATCH} x {LENGTH}, one thread"
    assert benchmark.pedantic(sides[which], rounds=1) > 0


def test_more_tokens_a_second_than_transformers(rounds, sides):
    """The bound is on tokens a second: both sides read the same text, and cut it differently."""
    samples, tokens = rounds.run({name: lambda _, side=side: side() for name, side in sides.items()}, ROUNDS, warmup=0)
    assert tokens["ours"][0] == pytest.approx(tokens["transformers"][0], rel=0.1)  # the same work
    rounds.judge(samples, "transformers", "ours", 1.6 * tokens["transformers"][0] / tokens["ours"][0])
