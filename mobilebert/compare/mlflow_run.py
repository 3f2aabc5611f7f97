"""Read an MLflow run as a run to compare."""

from __future__ import annotations

from mobilebert.compare.side import Run
from mobilebert.reporting.mlflow_reader import read_records


def read_run(run_id: str) -> Run:
    """Return the run of a study, or of one of its records. MLFLOW_TRACKING_URI names the store."""
    records = read_records(run_id)
    edited = tuple(record.id for record in records if record.seal == "edited")
    return Run(f"runs:/{run_id}", {record.id: record for record in records if record.seal != "edited"}, edited)
