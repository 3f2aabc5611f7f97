"""Write a comparison into MLflow, as a run beside the runs of the study."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mobilebert.compare import html
from mobilebert.compare.comparison import Comparison, Report
from mobilebert.compare.gate import exit_code
from mobilebert.compare.metrics import Values
from mobilebert.compare.side import Side
from mobilebert.compare.text import text
from mobilebert.reporting.run_texts import NOTE, SOURCE, SOURCE_TYPE, user
from mobilebert.reporting.run_writer import TAG_LENGTH, Point, key_of, log, short
from mobilebert.reporting.store import VARIABLE, open_store, trouble
from mobilebert.study.code_hash import digest
from mobilebert.util.errors import UserError
from mobilebert.util.files import json_safe

MOST_DIFFERENCES = 500  # differences that become parameters in MLflow; comparison.json holds all


def log_comparison(report: Report, new: Sequence[Side], names: Sequence[str]) -> list[str]:
    """Write each comparison of a report as an MLflow run; return a line for each.

    The store is that of MLFLOW_TRACKING_URI, else mlflow.db in the first folder among `names`. A
    comparison that the store has already is not written again. Raises UserError without a store.
    """
    folder = _folder(names)
    with trouble(folder):
        return [_write(report, one, side, folder) for one, side in zip(report.comparisons, new, strict=True)]


def _folder(names: Sequence[str]) -> Path:
    folder = next((Path(name) for name in names if Path(name).is_dir()), Path())
    if not os.environ.get(VARIABLE) and not (folder / "mlflow.db").is_file():
        raise UserError(f"compare: --log: {folder / 'mlflow.db'} is missing; run `mobilebert track`, or set {VARIABLE}")
    return folder.resolve()


def _write(report: Report, one: Comparison, side: Side, folder: Path) -> str:
    store = open_store(folder, side.study or "comparisons", _say)
    client, alone = store.client, Report((one,), report.gate)
    content = json_safe(alone.as_json())
    key = digest(content)
    found = client.search_runs([store.experiment], f"tags.comparison = '{key}'", max_results=1)
    if found and found[0].info.status != "RUNNING":
        return f"logged before: runs:/{found[0].info.run_id} ({store.uri})"
    tags = {"comparison": key, "base": one.base, "new": one.new, SOURCE: "mobilebert compare --log", SOURCE_TYPE: "LOCAL"}
    tags |= {"equal": str(one.is_equal).lower()} | user()
    run = found[0] if found else client.create_run(store.experiment, tags=short(tags), run_name=_name(one))
    run_id = run.info.run_id
    plain = text(alone)
    note = plain if len(plain) < TAG_LENGTH - 100 else f"{plain[: TAG_LENGTH - 100]}\n... (the rest: comparison.txt)"
    log(client, run_id, _points(one), _params(one), {NOTE: f"```text\n{note}\n```"})
    # A comparison belongs to no results folder, so its files go where the store keeps files.
    client.log_text(run_id, json.dumps(content, indent=1), "comparison.json")
    client.log_text(run_id, plain, "comparison.txt")
    client.log_text(run_id, html.page(alone), "comparison.html")
    holds = report.gate is None or exit_code(report.gate) == 0
    client.set_terminated(run_id, "FINISHED" if holds else "FAILED")
    return f"logged: runs:/{run_id} ({store.uri})"


def _say(line: str) -> None:
    if not os.environ.get(VARIABLE):  # a shared store warns about a results folder's files; --log has none
        print(f"mobilebert: {line}", file=sys.stderr)


def _name(one: Comparison) -> str:
    """Return the new side before the base, each by the end of its path."""
    new, base = (urlsplit(name).path.rstrip("/").rpartition("/")[2] for name in (one.new, one.base))
    return f"{new} against {base}"


def _points(one: Comparison) -> list[Point]:
    """Return the number of metrics of each verdict, and base, new and difference of each metric."""
    found: list[Point] = [(f"verdicts/{verdict}", count, 0, 0) for verdict, count in one.verdicts.items()]
    for row in one.metrics:
        name = f"{row.job}:{row.metric}"
        values = {"base": _mean(row.base), "new": _mean(row.new), "difference": row.difference, "margin": row.margin}
        found += [(f"{kind}/{name}", value, 0, 0) for kind, value in values.items() if value is not None]
    return found


def _mean(values: Values | None) -> float | None:
    return None if values is None else values.mean


def _params(one: Comparison) -> Mapping[str, str]:
    """Return the differences: the key, both values and where."""
    found: dict[str, str] = {}
    for item in one.differences[:MOST_DIFFERENCES]:
        key = key_of(f"{item.kind}.{item.key}")
        line = f"{item.base} -> {item.new} ({item.where})"
        found[key] = f"{found[key]}; {line}" if key in found else line
    return found
