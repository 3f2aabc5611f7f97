"""Define the interface of a data source: tables, a corpus, a vocabulary."""

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
    """A source of documents for pre-training, tables for fine-tuning and their vocabulary.

    Methods raise UserError for an unknown task, a missing split, and a missing or wrong file.
    """

    spec: str
    limit: int | None  # most documents that are read

    def documents(self) -> Iterator[str]:
        """Yield documents, at most `limit`; a newline separates a document's paragraphs."""
        raise NotImplementedError

    def share_read(self, documents: int) -> float | None:
        """Return about what share of the corpus `documents()` has yielded after so many documents.

        Returns None if it is unknown.
        """
        return documents / self.limit if self.limit else None

    def table(self, task: str, split: str) -> pd.DataFrame:
        """Return the rows of one split.

        SQuAD's `answers` are {"text": list[str], "answer_start": list[int]}.
        """
        raise NotImplementedError

    def splits(self, task: str) -> list[str]:
        """Return the splits that this source has of a task, train first."""
        raise NotImplementedError

    def rows(self, task: str, split: str) -> int:
        """Return the number of rows of one split."""
        return len(self.table(task, split))

    def vocab(self) -> Path | None:
        """Return the source's vocab.txt, or None if the tokenizer is trained on the documents."""
        raise NotImplementedError

    def files(self, name: str) -> dict[str, str]:
        """Return the files of a task's tables or of the "corpus": relative name -> sha256 (hex)."""
        raise NotImplementedError

    def label(self, task: str, split: str) -> str | None:
        """Return the label of results on one split of this source; see the function `label`."""
        return label(task, split, self.rows(task, split))


def label(task: str, split: str, rows: int) -> str | None:
    """Return the label that a result on so many rows of a split must show.

    Returns None if the rows are the whole official split.
    """
    official = OFFICIAL_ROWS[check_task(task)].get(split)
    if rows == official:
        return None
    # The 40,430 official QQP dev rows are often not available; the replacement is cut from train.
    if task == "qqp" and split == "validation":
        return f"{rows:,} held-out train rows"
    kind = split.removeprefix("validation_").removeprefix("test_")
    if official is None:
        return f"{rows:,} {kind} rows of no official split"
    return f"{rows:,} of {official:,} {kind} rows"


def check_task(task: str) -> str:
    """Return `task`. Raises UserError if there is no such task."""
    if task not in TASKS:
        raise UserError(f"task {task!r}: must be one of {', '.join(TASKS)}")
    return task
