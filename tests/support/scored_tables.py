"""Write a data folder with small tables of every task."""

import numpy as np
import pandas as pd

from mobilebert.study.tasks import TASKS

ROWS = 40


def glue_table(draw, name, rows=ROWS, first=0):
    task = TASKS[name]
    labels = draw.integers(0, 26, rows) / 5 if task.is_regression else draw.integers(0, task.num_labels, rows)
    texts = {column: [f"{column} {row}" for row in range(rows)] for column in task.text_columns}
    idx = draw.permutation(np.arange(first, first + rows))
    return pd.DataFrame({**texts, "label": labels, "idx": idx})


def squad_table(unanswerable=()):
    rows = []
    for row in range(12):
        context = f"the cat number {row} sat on a red mat"
        texts = [] if row in unanswerable else [f"number {row}", "mat"]
        answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
        rows.append({"id": f"q{row}", "title": "t", "context": context, "question": "which?", "answers": answers})
    return pd.DataFrame(rows)


def write_tables(folder):
    """Write a data folder with validation splits, and test splits with hidden labels."""
    draw = np.random.default_rng(3)
    for name, task in TASKS.items():
        if task.is_squad:
            tables = {"validation": squad_table(range(0, 12, 3) if name == "squad_v2.0" else ())}
        else:
            tables = {split: glue_table(draw, name, first=100 * (split != "validation")) for split in task.splits}
            tables = {split: frame.assign(label=-1) if split.startswith("test") else frame for split, frame in tables.items()}
        for split, frame in tables.items():
            path = folder / task.folder / f"{task.splits[split]}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(path)
    return folder


def table_of(data, name, split="validation"):
    return pd.read_parquet(data / TASKS[name].folder / f"{TASKS[name].splits[split]}.parquet")
