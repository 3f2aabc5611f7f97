"""Read the fields of a record for the views; a missing or malformed field counts as empty."""

from __future__ import annotations

import math
import statistics
from datetime import UTC, datetime

from mobilebert.jobs.record import Record

LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()  # seconds; the largest time and duration that a view uses
UNSEALED = "record: written before records had a checksum"


def number(value: object) -> float:
    """Return a finite number as a float; NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer that no float holds
        return math.nan


def is_number(value: object) -> bool:
    """Return whether the value is a finite number."""
    return not math.isnan(number(value))


def fraction_in_percent(value: object) -> float:
    """Return 100 times a finite number; NaN for everything else."""
    return number(100 * number(value))


def statuses(record: Record) -> list[str]:
    """Return the status (ok, failed, diverged) of every seed that the record counts."""
    found = record.details.get("statuses")
    return [item for item in found if item in ("ok", "failed", "diverged")] if isinstance(found, list) else []


def status(record: Record) -> str:
    """Return the record's status as a view shows it: `failed` if the job ended but did not learn.

    A score has failed if at least half of its seeds failed or diverged: then the median is, or is
    next to, the score of a trial that did not learn. Fewer of them become a footnote.
    """
    if record.status != "ok":
        return record.status
    found = statuses(record)
    share = number(record.metrics.get("failed_share"))
    if found:
        share = sum(item != "ok" for item in found) / len(found)
    return "failed" if share >= 0.5 else "ok"


def is_score(record: Record) -> bool:
    """Return whether the record scores a model on a task."""
    return record.stage in ("finetune", "quantize")


def reason(record: Record) -> str:
    """Return in words why the record's status is not `ok`; "" if it is."""
    if record.status == "void":
        return f"{record.reason or 'no reason given'}; measure again: snakemake --forcerun {record.stage}"
    if record.reason or status(record) != "failed":
        return record.reason or ""
    return ", ".join((*diverged_labels(record), *failed_labels(record))) or "most runs failed"


def samples(record: Record, metric: str) -> list[float]:
    """Return a metric of every seed, in percent; NaN for a seed without one."""
    return [fraction_in_percent(value) for value in record.samples.get(metric, [])]


def spread(values: list[float]) -> float | None:
    """Return the standard deviation of the finite values; None for fewer than two."""
    finite = [value for value in values if math.isfinite(value)]
    try:
        return statistics.stdev(finite) if len(finite) > 1 else None
    except OverflowError:
        return None


def diverged_labels(record: Record, metric: str | None = None) -> tuple[str, ...]:
    """Return the footnote on seeds that diverged: they are missing in the metric's samples."""
    if metric is None:
        missing, count = statuses(record).count("diverged"), len(statuses(record))
    else:
        values = samples(record, metric)
        missing, count = sum(math.isnan(value) for value in values), len(values)
    return (f"{missing} of {count} seeds diverged",) if missing else ()


def failed_labels(record: Record, metric: str | None = None) -> tuple[str, ...]:
    """Return the footnote on trials that ended but did not learn (`finetuning.outcomes.failure`),
    with the median of the others."""
    found = statuses(record)
    failed = found.count("failed")
    if not failed:
        return ()
    text = f"{failed} of {len(found)} runs failed"
    summary = record.details.get("summary")
    figures = summary.get(metric) if isinstance(summary, dict) else None
    if isinstance(figures, dict):
        median, count = fraction_in_percent(figures.get("median_ok")), number(figures.get("n_ok"))
        if count >= 1 and not math.isnan(median):
            text += f", the median of the other {count:.0f} is {median:.1f}"
    return (text,)


def labels(record: Record) -> tuple[str, ...]:
    """Return the record's labels, with UNSEALED if it has no checksum."""
    return (*record.labels, UNSEALED) if record.seal == "unsealed" else record.labels


def seeds(record: Record) -> list[str]:
    """Return the seeds that the record's configuration names."""
    found = record.config.get("seeds")
    if found is None and "seed" in record.config:
        found = [record.config["seed"]]
    return [str(seed) for seed in found] if isinstance(found, list) else []


def shares(record: Record) -> dict[str, list[float]]:
    """Return split -> fraction of the predictions for each class."""
    found = record.details.get("shares")
    if not isinstance(found, dict):
        return {}
    numbers = {split: [number(value) for value in values] for split, values in found.items() if isinstance(values, list)}
    return {split: values for split, values in numbers.items() if values and not any(map(math.isnan, values))}


def seconds(record: Record) -> float:
    """Return how many seconds the job took; 0 if the field is malformed."""
    return duration(record.seconds)


def duration(value: object) -> float:
    """Return a number of seconds, at least 0; 0 if the value is not a finite number."""
    return min(max(number(value), 0.0), LATEST) if is_number(value) else 0.0


def started(moment: str) -> int:
    """Return a record's start in milliseconds since 1970; 0 if it is not a valid time."""
    try:
        return max(0, int(datetime.fromisoformat(moment).timestamp() * 1000))
    except (ValueError, TypeError, OverflowError):
        return 0
