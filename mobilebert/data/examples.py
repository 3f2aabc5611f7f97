"""Encode a task's rows as token ids and form batches.

Training batches are sorted by length and padded; batches for prediction have rows of one length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilebert.data import cache, squad
from mobilebert.study.stage_config import LengthsConfig
from mobilebert.study.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer

BUCKET = 50  # batches that are sorted by length together: little padding, yet different batches in each epoch


@dataclass(frozen=True)
class Examples:
    """N encoded rows.

    `ids` and `types` are lists of int arrays; `targets` maps a label's name to an array [N].
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    pad: int
    targets: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each row, [N]."""
        return np.array([len(ids) for ids in self.ids])

    def part(self, count: int) -> Examples:
        """Return `count` rows drawn at random; a smaller part is a subset of a larger one."""
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:count])
        targets = {name: values[rows] for name, values in self.targets.items()}
        return Examples([self.ids[row] for row in rows], [self.types[row] for row in rows], self.pad, targets)

    def batch(self, rows: np.ndarray, multiple: int = 8) -> dict[str, np.ndarray]:
        """Return input_ids, attention_mask, token_type_ids and the targets of these rows.

        The first three are (B, T) int64, with T a multiple of `multiple`.
        """
        width = -(-max(len(self.ids[row]) for row in rows) // multiple) * multiple
        ids = np.full((len(rows), width), self.pad, np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for place, row in enumerate(rows):
            size = len(self.ids[row])
            ids[place, :size], types[place, :size], mask[place, :size] = self.ids[row], self.types[row], 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return arrays | {name: values[rows] for name, values in self.targets.items()}

    def epoch(self, size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the batches of one epoch as row numbers; they depend only on (seed, epoch)."""
        rng = np.random.default_rng([seed, epoch])
        order, lengths, batches = rng.permutation(len(self)), self.lengths, []
        for start in range(0, len(order), BUCKET * size):
            bucket = order[start : start + BUCKET * size]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
        return [batches[place] for place in rng.permutation(len(batches))]

    def by_length(self, size: int) -> list[np.ndarray]:
        """Return batches for prediction as row numbers, longest rows first, each of one length.

        Such batches need no padding. MobileBERT's last token reads the token after it, even a
        [PAD]: a padded row would get another prediction.
        """
        order = np.argsort(-self.lengths, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.lengths[order])) + 1)
        return [group[first : first + size] for group in groups for first in range(0, len(group), size)]


def table_file(data: Path, task: str, split: str) -> Path:
    """Return the file in which the data stage keeps a task's rows."""
    return data / "tasks" / task / f"{split}.parquet"


def sample(frame: pd.DataFrame, rows: int | None, seed: int) -> pd.DataFrame:
    """Return at most `rows` rows of a table, drawn at random, in the table's order."""
    if rows is None or rows >= len(frame):
        return frame
    chosen = np.sort(np.random.default_rng(seed).permutation(len(frame))[:rows])
    return frame.iloc[chosen].reset_index(drop=True)


def encode(tokenizer: Tokenizer, task_name: str, frame: pd.DataFrame, length: int) -> Examples:
    """Return GLUE rows as examples: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

    Rows longer than `length` are cut at the longer text's end.
    """
    task = TASKS[task_name]
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [frame[column].tolist() for column in task.text_columns]

    def tokens() -> dict[str, np.ndarray]:
        tokenizer.enable_truncation(length, strategy="longest_first")
        encodings = tokenizer.encode_batch(list(zip(*texts, strict=True)) if len(texts) == 2 else texts[0])
        tokenizer.no_truncation()
        return {
            "bounds": np.cumsum([0, *(len(item.ids) for item in encodings)]),
            "ids": np.fromiter(chain.from_iterable(item.ids for item in encodings), np.int32),
            "types": np.fromiter(chain.from_iterable(item.type_ids for item in encodings), np.int8),
        }

    found = cache.arrays(tokens, tokenizer.to_str(), texts, length)
    labels = frame["label"].to_numpy().astype(np.float32 if task.is_regression else np.int64)
    ids, types = (_rows(found[name], found["bounds"]) for name in ("ids", "types"))
    pad = tokenizer.token_to_id("[PAD]")
    assert pad is not None
    return Examples(ids, types, pad, {"labels": labels})


def _rows(flat: np.ndarray, bounds: np.ndarray) -> list[np.ndarray]:
    return [flat[start:end] for start, end in pairwise(bounds.tolist())]


def encode_squad(
    tokenizer: Tokenizer, frame: pd.DataFrame, setting: LengthsConfig, training: bool
) -> tuple[Examples, squad.Windows]:
    """Return SQuAD rows as examples, one a window, and as windows (see `mobilebert.data.squad`)."""
    assert setting.doc_stride is not None
    assert setting.max_query_length is not None
    cut = {"max_length": setting.length, "doc_stride": setting.doc_stride, "max_query_length": setting.max_query_length}
    texts = [frame["question"].tolist(), frame["context"].tolist()]
    answers = None
    if training:
        answers = [[list(item["text"]), [int(start) for start in item["answer_start"]]] for item in frame["answers"]]

    def made() -> dict[str, np.ndarray]:
        fields = vars(squad.windows(tokenizer, frame, **cut, training=training))
        return {name: array for name, array in fields.items() if array is not None}

    found = cache.arrays(made, tokenizer.to_str(), texts, answers, cut)
    no_answers: dict[str, Any] = {"start_positions": None, "end_positions": None}
    windows = squad.Windows(**{**no_answers, **found})
    names = ("start_positions", "end_positions") if training else ()
    targets = {name: found[name].astype(np.int64) for name in names}
    rows = [windows[index] for index in range(len(windows))]
    pad = tokenizer.token_to_id("[PAD]")
    assert pad is not None
    return Examples([row["input_ids"] for row in rows], [row["token_type_ids"] for row in rows], pad, targets), windows
