"""Render the report as one HTML file, without scripts or outside style sheets, fonts or images."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from mobilebert.jobs.record import Record
from mobilebert.reporting import reading
from mobilebert.reporting.cell import NOTHING
from mobilebert.reporting.figures import loss_curves
from mobilebert.reporting.tables import LEGEND, FilledTable, counts, in_words
from mobilebert.reporting.verdicts import Outcome
from mobilebert.study.graph import final_job
from mobilebert.study.job import Graph
from mobilebert.study.recipe import TASK_NAMES
from mobilebert.study.schema import Study
from mobilebert.study.tasks import TASKS

CONTROLS = ("bag-of-embeddings", "control-fresh-student", "control-shuffled-teacher")
SUBJECT = "mobilebert"  # the row that the controls are compared with
EDITED = {
    "reason": "changed after it was written; delete its result.json to make it again",
    **dict.fromkeys(("time", "seeds", "shares", "labels", "fingerprint"), ""),
}


def render(
    study: Study,
    graph: Graph,
    records: Mapping[str, Record],
    tables: list[FilledTable],
    outcomes: list[Outcome],
    edited: Collection[str] = (),
    claims: Mapping | None = None,
) -> str:
    """Return the page as HTML.

    records: job id -> current record. edited: ids of edited records. claims: the section on the
    paper's claims, `claims.text.section`.
    """
    from markupsafe import Markup

    return _template("page.html.j2").render(
        study=study,
        summary=_summary(study, graph, records, edited) | {"Cells of the tables": in_words(counts(tables))},
        claims=claims,
        outcomes=outcomes,
        held=sum(item.outcome == "pass" for item in outcomes),
        judged=sum(item.outcome != "shown" for item in outcomes),
        legend=LEGEND,
        tables=tables,
        figures={title: Markup(svg) for title, svg in loss_curves(records).items()},  # matplotlib escapes its texts
        control_heads=[SUBJECT, "majority class", *CONTROLS],
        controls=controls(study, records),
        rows=[*({"id": key, "status": "edited", **EDITED} for key in edited), *map(_row, records.values())],
        environments=_environments(records),
    )


def render_table(filled: FilledTable, study: str) -> str:
    """Return one table as an HTML page of its own."""
    return _template("one_table.html.j2").render(filled=filled, study=study, legend=LEGEND)


def _template(name: str):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _summary(study: Study, graph: Graph, records: Mapping[str, Record], edited: Collection[str]) -> dict[str, str]:
    said = [reading.status(record) for record in records.values()] + ["edited"] * len(edited)
    kinds = ", ".join(
        f"{said.count(kind)} {kind}" for kind in ("ok", "failed", "diverged", "void", "refused", "edited") if kind in said
    )
    return {
        "Study": study.name,
        "Recipe": study.recipe,
        "Data": study.data.source.split(":")[0],
        "Scale": f"widths / {study.scale.width_divisor}, layers / {study.scale.layer_divisor}",
        "Checkpoints": ", ".join(f"{model}: {source}" for model, source in study.checkpoints.items()) or "none",
        "Seeds of fine-tuning": ", ".join(map(str, study.finetune.seeds)),
        "Records": f"{len(records)} current" + (f" ({kinds})" if kinds else "") + f"; the graph has {len(graph)} jobs",
        "Computing time": duration(sum(reading.seconds(record) for record in records.values())),
    }


def controls(study: Study, records: Mapping[str, Record]) -> list[tuple[str, list[str]]]:
    """Return what a result must beat to mean anything: (quantity, values of SUBJECT, of the
    majority class and of CONTROLS)."""
    rows = []
    for task in TASK_NAMES:
        headline = TASKS[task].metrics[0]
        keys = [f"finetune/{model}/{task}" for model in (SUBJECT, *CONTROLS)]
        values = [_metric(records, key, headline) for key in keys]
        majority = _metric(records, keys[0], "majority") if headline == "accuracy" else None
        if majority is not None or any(value is not None for value in values[1:]):
            shown = [_percent(value, records.get(key)) for key, value in zip(keys, values, strict=True)]
            rows.append((f"{task} {headline} (%)", [shown[0], _percent(majority), *shown[1:]]))
    finals = [final_job(study, model) for model in (SUBJECT, *CONTROLS)]
    losses = [_metric(records, key, "heldout_mlm_loss") for key in finals]
    if any(value is not None for value in losses[1:]):
        shown = [NOTHING if value is None else f"{value:.3f}" for value in losses]
        rows.append(("held-out masked-LM loss (nats, lower is better)", [shown[0], NOTHING, *shown[1:]]))
    return rows


def _metric(records: Mapping[str, Record], key: str | None, name: str) -> float | None:
    record = records.get(key) if key else None
    value = reading.number(record.metrics.get(name)) if record and record.status == "ok" else math.nan
    return None if math.isnan(value) else value


def _percent(value: float | None, record: Record | None = None) -> str:
    """Return a fraction in percent, with " (failed)" if the record's trials did not learn."""
    if value is None:
        return NOTHING
    return f"{100 * value:.1f}" + (" (failed)" if record and reading.status(record) == "failed" else "")


def _row(record: Record) -> dict[str, str]:
    return {
        "id": record.id,
        "status": reading.status(record),
        "reason": reading.reason(record),
        "time": duration(reading.seconds(record)),
        "seeds": ", ".join(reading.seeds(record)),
        "shares": "; ".join(
            f"{split}: {' / '.join(f'{share:.0%}' for share in values)}" for split, values in reading.shares(record).items()
        ),
        "labels": ", ".join((*reading.labels(record), *reading.failed_labels(record))),
        "fingerprint": record.fingerprint[:12],
    }


def _environments(records: Mapping[str, Record]) -> list[dict[str, str]]:
    """Return the distinct machines and package versions, each with its number of records."""
    found: dict[tuple, int] = {}
    for record in records.values():
        machine = {key: str(value) for key, value in record.machine.items() if key != "load"}
        facts = (*sorted(machine.items()), *record.versions.items())
        found[facts] = found.get(facts, 0) + 1
    return [{"records": str(count), **dict(facts)} for facts, count in found.items()]


def duration(seconds: float) -> str:
    """Return a time for people: "5.0 s", "2 min 3 s" or "4 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
