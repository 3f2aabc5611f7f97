"""Check every table, build the tokenizer and tokenize the corpus: the first job of every study."""

from __future__ import annotations

import json

import numpy as np

from mobilebert.data.corpus import SPLITS, prepare_corpus
from mobilebert.data.examples import table_file
from mobilebert.data.ngrams import bytes_per_token, trigram_entropy
from mobilebert.data.reading import writing
from mobilebert.data.sources import open_source
from mobilebert.data.tokenizer import build_tokenizer
from mobilebert.jobs.context import JobContext
from mobilebert.study.schema import Study
from mobilebert.study.tasks import TASKS
from mobilebert.util.files import file_sha256
from mobilebert.util.machine import cores
from mobilebert.util.progress import bar

WORKERS = 5  # about 250 MB each, and 350 MB in this process: under 2 GB on any number of cores


def main(context: JobContext, study: Study) -> None:
    """Write tables, tokenizer and corpus to the job's folder, and their counts to the record."""
    config = study.data
    source = open_source(config.source, seed=config.seed, documents=config.documents)
    rows, labels, files = {}, {}, {}
    for task in TASKS:  # before the corpus: a wrong table is reported in a second, not after an hour
        for split in source.splits(task):
            role = next(key for key, stem in TASKS[task].splits.items() if stem == split)
            frame = source.table(task, split)
            path = table_file(context.folder, task, role)
            path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path):
                frame.to_parquet(path, index=False)
            rows.setdefault(task, {})[role] = len(frame)
            if label := source.label(task, split):
                labels.setdefault(task, {})[role] = label
            context.artefacts.append(str(path.relative_to(context.folder)))
        files |= source.files(task)
    split = 0 if config.source == "synthetic" else config.seed  # another seed generates another text, not another split
    tokenizer = build_tokenizer(source, context.folder / "tokenizer", config.vocab_size, config.heldout_share, split)
    paragraphs = {text for task in ("squad_v1.1", "squad_v2.0") for text in source.table(task, "validation")["context"].unique()}
    with bar(0, "corpus", unit="tok") as shown:
        counts = prepare_corpus(
            source,
            tokenizer,
            context.folder / "corpus",
            heldout_share=config.heldout_share,
            seed=split,
            squad_dev_paragraphs=paragraphs,
            workers=min(WORKERS, cores()),
            cache=context.results / ".cache" / "corpus",  # shared by all studies
            progress=lambda documents, tokens: _show(shown, tokens, source.share_read(documents)),
        )
    files |= source.files("corpus")
    for folder in ("tokenizer", "corpus"):
        context.artefacts += sorted(
            str(file.relative_to(context.folder)) for file in (context.folder / folder).iterdir() if file.is_file()
        )
    context.metrics |= {key: value for key, value in counts.items() if isinstance(value, int | float)}
    size = tokenizer.get_vocab_size()
    context.metrics["vocab_size"] = size
    train, heldout = (np.load(context.folder / "corpus" / f"{split}.tokens.npy", mmap_mode="r") for split in SPLITS)
    context.metrics["trigram_entropy"] = trigram_entropy(train, heldout, size)
    context.metrics["bytes_per_token"] = bytes_per_token(heldout, [str(tokenizer.id_to_token(index)) for index in range(size)])
    context.details |= {
        "rows": rows,
        "labels": labels,
        "files": files,
        "vocab": file_sha256(context.folder / "tokenizer" / "vocab.txt"),
    }
    context.details["counts"] = json.loads(json.dumps(counts))


def _show(shown, tokens: int, share: float | None) -> None:
    """Show the tokens so far; estimate their total from the share of the corpus read."""
    shown.total = round(tokens / share) if share else None
    shown.update(tokens - shown.n)
