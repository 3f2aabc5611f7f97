"""Write a submission to the GLUE server: a zip with one complete TSV for each test set.

The models of the nine tasks predict the rows. AX has no training set: MNLI's model predicts it, as
the benchmark says. The server takes only complete submissions, so a task without a model must be
named too: `TASK=majority` predicts the most frequent class of the task's training set (STS-B: its
mean), as published results do for WNLI, and the summary says so.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mobilebert.data.source import OFFICIAL_ROWS
from mobilebert.evaluation import input_rows, prediction_files
from mobilebert.evaluation.glue import LEADERBOARD
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError
from mobilebert.util.files import write_atomically

MAJORITY = "majority"
# File -> (task of the test set, split, task whose model predicts it).
FILES = {
    "CoLA.tsv": ("cola", "test", "cola"),
    "SST-2.tsv": ("sst2", "test", "sst2"),
    "MRPC.tsv": ("mrpc", "test", "mrpc"),
    "STS-B.tsv": ("stsb", "test", "stsb"),
    "QQP.tsv": ("qqp", "test", "qqp"),
    "MNLI-m.tsv": ("mnli", "test", "mnli"),
    "MNLI-mm.tsv": ("mnli", "test_mismatched", "mnli"),
    "QNLI.tsv": ("qnli", "test", "qnli"),
    "RTE.tsv": ("rte", "test", "rte"),
    "WNLI.tsv": ("wnli", "test", "wnli"),
    "AX.tsv": ("ax", "test", "mnli"),
}


def models_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return the models of `TASK=MODEL` arguments by task.

    Raises UserError unless each of the nine tasks is named once.
    """
    models: dict[str, str] = {}
    for pair in pairs:
        task, _, model = pair.partition("=")
        if task not in LEADERBOARD or not model:
            raise UserError(f"{pair!r}: must be TASK=MODEL or TASK={MAJORITY}, TASK one of {', '.join(LEADERBOARD)}")
        if task in models:
            raise UserError(f"{pair!r}: {task} is named twice")
        models[task] = model
    if missing := [task for task in LEADERBOARD if task not in models]:
        raise UserError(
            f"the server takes all nine tasks at once; missing: {', '.join(missing)} (TASK={MAJORITY} answers with the "
            "training set's most frequent class)"
        )
    return models


def submit(pairs: Sequence[str], data: str, out: Path, threads: int = 1) -> dict:
    """Write the zip `out`; return {file: {"rows": ..., "from": model or "majority: ..."}}.

    Raises UserError, before any model runs, for a test set that is missing or incomplete.
    """
    models, tables = models_of(pairs), {}
    if out.suffix != ".zip":
        raise UserError(f"{out}: a submission is a .zip")
    for file, (name, split, _) in FILES.items():
        table = input_rows.read_table(data, TASKS[name], split)
        if not is_whole(table, name, split):
            wanted = OFFICIAL_ROWS[name][TASKS[name].splits[split]]
            raise UserError(f"{data}: {split} of {name} is not the server's: {len(table):,} of {wanted:,} rows, idx from 0")
        tables[file] = table.sort_values("idx")
    texts, summary = {}, {}
    for answering in LEADERBOARD:
        source = models[answering]
        model = None
        if source != MAJORITY:
            from mobilebert.evaluation.checkpoints import load_checkpoint

            model = load_checkpoint(source, TASKS[answering], threads)
        for file, (name, _, by) in FILES.items():
            if by != answering:
                continue
            table = tables[file]
            if model:
                predictions, origin = model.predict(table, file)["prediction"].to_numpy(), source
            else:
                value = _majority(data, answering)
                predictions, origin = np.full(len(table), value), f"{MAJORITY}: {value:g}, no model"
            texts[file] = prediction_files.server_tsv(TASKS[name], table["idx"], predictions)
            summary[file] = {"rows": len(table), "from": origin}
    write_atomically(out, _zip({file: texts[file] for file in FILES}))
    return {file: summary[file] for file in FILES}


def is_whole(table: pd.DataFrame, name: str, split: str) -> bool:
    """Return whether a table holds every row of the server's test set, numbered by `idx` from 0.

    In other splits idx is only a name.
    """
    return sorted(table["idx"]) == list(range(OFFICIAL_ROWS[name][TASKS[name].splits[split]]))


def _majority(data: str, name: str) -> float | int:
    """Return the most frequent training label (the lower class if equal); for STS-B the mean."""
    label: Any = input_rows.labelled_table(data, TASKS[name], "train")["label"]
    return float(label.mean()) if TASKS[name].is_regression else int(label.mode().iloc[0])


def _zip(texts: dict[str, str]) -> bytes:
    """Return a zip of the texts. Equal texts give equal bytes: all entries have one fixed date."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
