"""Read which rows of a task a model answered correctly, from the predictions beside its record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobilebert.claims.measured import Answers
from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.util.errors import UserError

PREDICTIONS = "predictions.parquet"


def read_answers(record: Record, folder: Path) -> Answers:
    """Return the answers to the validation rows, in the order of `idx`.

    `correct` is None if the file of predictions is not there. Raises UserError if it is damaged, or
    if an `idx` is not an integer.
    """
    file = folder / PREDICTIONS
    is_whole, failed = record.config.get("eval_rows") is None, reading.status(record) != "ok"
    if not file.is_file():
        return Answers(None, is_whole, failed)
    from pyarrow import ArrowException  # imported here: most claims need no predictions
    from pyarrow.parquet import read_table

    try:
        table = read_table(file, columns=["split", "idx", "prediction", "label"]).to_pydict()
    except (ArrowException, OSError, KeyError) as error:
        raise UserError(f"{file}: no file of predictions: {str(error).splitlines()[0]}") from None
    if not all(type(idx) is int for idx in table["idx"]):
        raise UserError(f"{file}: no file of predictions: idx must be an integer in every row")
    rows = sorted(
        (idx, prediction == label)
        for split, idx, prediction, label in zip(*(table[key] for key in ("split", "idx", "prediction", "label")), strict=True)
        if split == "validation"
    )
    if not rows:
        return Answers(None, is_whole, failed)
    correct = np.array([correct for _, correct in rows], dtype=bool)
    return Answers(correct, is_whole, failed, tuple(idx for idx, _ in rows))
