"""Rows of a task as token ids, and batches of them: sorted by length in buckets, padded to the longest of the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mobilebert.data import squad
from mobilebert.data.glue import TASKS

BUCKET = 50  # batches that are sorted by length together: little padding, yet no epoch sees the same batches


@dataclass(frozen=True)
class Examples:
    """N encoded rows. `ids` and `types` are lists of int arrays; `targets` maps a label's name to an array [N]."""

    ids: list[np.ndarray]
    types: list[np.ndarray]
    pad: int
    targets: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.ids])

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids, attention_mask, token_type_ids (B, T), int64, T a multiple of 8; and the targets of these rows."""
        width = -(-max(len(self.ids[row]) for row in rows) // 8) * 8
        ids = np.full((len(rows), width), self.pad, np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for place, row in enumerate(rows):
            size = len(self.ids[row])
            ids[place, :size], types[place, :size], mask[place, :size] = self.ids[row], self.types[row], 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return arrays | {name: values[rows] for name, values in self.targets.items()}

    def epoch(self, size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch as row numbers, a function of (seed, epoch) alone."""
        rng = np.random.default_rng([seed, epoch])
        order, lengths, batches = rng.permutation(len(self)), self.lengths, []
        for start in range(0, len(order), BUCKET * size):
            bucket = order[start : start + BUCKET * size]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
        return [batches[place] for place in rng.permutation(len(batches))]

    def by_length(self, size: int) -> list[np.ndarray]:
        """Batches for prediction, longest first."""
        order = np.argsort(-self.lengths, kind="stable")
        return [order[first : first + size] for first in range(0, len(order), size)]


def table_file(data: Path, task: str, split: str) -> Path:
    """Where the data stage keeps a task's rows."""
    return data / "tasks" / task / f"{split}.parquet"


def sample(frame, rows: int | None, seed: int):
    """At most `rows` rows, drawn at random, in their order."""
    if rows is None or rows >= len(frame):
        return frame
    chosen = np.sort(np.random.default_rng(seed).permutation(len(frame))[:rows])
    return frame.iloc[chosen].reset_index(drop=True)


def encode(tokenizer, task_name: str, frame, length: int) -> Examples:
    """GLUE rows: [CLS] a [SEP], or [CLS] a [SEP] b [SEP], cut to `length` from the longer text's end."""
    task = TASKS[task_name]
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, strategy="longest_first")
    texts = [frame[column].tolist() for column in task.text_columns]
    encodings = tokenizer.encode_batch(list(zip(*texts, strict=True)) if len(texts) == 2 else texts[0])
    tokenizer.no_truncation()
    ids = [np.array(item.ids, np.int32) for item in encodings]
    types = [np.array(item.type_ids, np.int8) for item in encodings]
    labels = frame["label"].to_numpy().astype(np.float32 if task.is_regression else np.int64)
    return Examples(ids, types, tokenizer.token_to_id("[PAD]"), {"labels": labels})


def encode_squad(tokenizer, frame, setting: dict, training: bool) -> tuple[Examples, squad.Windows]:
    """SQuAD rows as windows (see `mobilebert.data.squad`) and as examples of them."""
    windows = squad.windows(
        tokenizer,
        frame,
        max_length=setting["length"],
        doc_stride=setting["doc_stride"],
        max_query_length=setting["max_query_length"],
        training=training,
    )
    rows = [windows[index] for index in range(len(windows))]
    targets = {}
    if training:
        for name in ("start_positions", "end_positions"):
            targets[name] = np.array([row[name] for row in rows], np.int64)
    pad = tokenizer.token_to_id("[PAD]")
    return Examples([row["input_ids"] for row in rows], [row["token_type_ids"] for row in rows], pad, targets), windows
