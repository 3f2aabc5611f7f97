"""Define what a source of data gives: tables, a corpus, a vocabulary."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError

# Rows of every split of nyu-mll/glue, rajpurkar/squad and rajpurkar/squad_v2.
OFFICIAL_ROWS: dict[str, dict[str, int]] = {
    "cola": {"train": 8_551, "validation": 1_043, "test": 1_063},
    "sst2": {"train": 67_349, "validation": 872, "test": 1_821},
    "mrpc": {"train": 3_668, "validation": 408, "test": 1_725},
    "stsb": {"train": 5_749, "validation": 1_500, "test": 1_379},
    "qqp": {"train": 363_846, "validation": 40_430, "test": 390_965},
    "mnli": {
        "train": 392_702,
        "validation_matched": 9_815,
        "validation_mismatched": 9_832,
        "test_matched": 9_796,
        "test_mismatched": 9_847,
    },
    "qnli": {"train": 104_743, "validation": 5_463, "test": 5_463},
    "rte": {"train": 2_490, "validation": 277, "test": 3_000},
    "wnli": {"train": 635, "validation": 71, "test": 146},
    "ax": {"test": 1_104},
    "squad_v1.1": {"train": 87_599, "validation": 10_570},
    "squad_v2.0": {"train": 130_319, "validation": 11_873},
}


class Source:
    """Documents for pre-training, tables for fine-tuning and the vocabulary that belongs to them.

    Methods raise UserError for an unknown task, a split that is not there and a file that is not what it should be.
    """

    spec: str
    limit: int | None  # documents read at most

    def documents(self) -> Iterator[str]:
        """One document per item, its paragraphs separated by a newline; at most as many as `open_source` was told."""
        raise NotImplementedError

    def share_read(self, documents: int) -> float | None:
        """About what share of the corpus `documents()` has given with so many documents; None where nothing tells."""
        return documents / self.limit if self.limit else None

    def table(self, task: str, split: str) -> pd.DataFrame:
        """The rows of one split; SQuAD's `answers` are {"text": list[str], "answer_start": list[int]}."""
        raise NotImplementedError

    def splits(self, task: str) -> list[str]:
        """The splits that this source has of a task, train first."""
        raise NotImplementedError

    def rows(self, task: str, split: str) -> int:
        return len(self.table(task, split))

    def vocab(self) -> Path | None:
        """The vocab.txt that belongs to the source, or None where the tokenizer is trained on the documents."""
        raise NotImplementedError

    def files(self, name: str) -> dict[str, str]:
        """What a task's tables, or the "corpus", are read from: relative name -> sha256 in hexadecimal digits."""
        raise NotImplementedError

    def label(self, task: str, split: str) -> str | None:
        return label(task, split, self.rows(task, split))


def label(task: str, split: str, rows: int) -> str | None:
    """What must stand beside a result on so many rows of a split; None where they are the official split, all of it."""
    official = OFFICIAL_ROWS[check_task(task)].get(split)
    if rows == official:
        return None
    # The 40,430 official QQP dev rows are often not to be had; what stands in for them then was cut from train.
    if task == "qqp" and split == "validation":
        return f"{rows:,} held-out train rows"
    kind = split.removeprefix("validation_").removeprefix("test_")
    if official is None:
        return f"{rows:,} {kind} rows of no official split"
    return f"{rows:,} of {official:,} {kind} rows"


def check_task(task: str) -> str:
    if task not in TASKS:
        raise UserError(f"task {task!r}: must be one of {', '.join(TASKS)}")
    return task
