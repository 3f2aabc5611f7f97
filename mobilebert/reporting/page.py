"""The report as one HTML file that needs nothing else: no script, no style sheet, no font, no image from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mobilebert.config import Study
from mobilebert.data import glue
from mobilebert.jobs import Graph, final_job
from mobilebert.records import Record
from mobilebert.reporting.figures import loss_curves
from mobilebert.reporting.tables import LEGEND, NOTHING, FilledTable, failed_labels
from mobilebert.reporting.verdicts import Outcome
from mobilebert.settings import TASKS

CONTROLS = ("bag-of-embeddings", "control-fresh-student", "control-shuffled-teacher")
SUBJECT = "mobilebert"  # what the controls are held against


def render(study: Study, graph: Graph, records: Mapping[str, Record], tables: list[FilledTable], outcomes: list[Outcome]) -> str:
    """The page's text. records: job id -> current record."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        study=study,
        summary=_summary(study, graph, records),
        outcomes=outcomes,
        held=sum(item.outcome == "pass" for item in outcomes),
        judged=sum(item.outcome != "shown" for item in outcomes),
        legend=LEGEND,
        tables=tables,
        figures={title: Markup(svg) for title, svg in loss_curves(records).items()},  # matplotlib escapes its texts
        control_heads=[SUBJECT, "majority class", *CONTROLS],
        controls=controls(study, records),
        rows=[_row(record) for record in records.values()],
        environments=_environments(records),
    )


def _summary(study: Study, graph: Graph, records: Mapping[str, Record]) -> dict[str, str]:
    done = sum(record.status == "ok" for record in records.values())
    return {
        "Study": study.name,
        "Recipe": study.recipe,
        "Data": study.data.source.split(":")[0],
        "Scale": f"widths / {study.scale.width_divisor}, layers / {study.scale.layer_divisor}",
        "Checkpoints": ", ".join(f"{model}: {source}" for model, source in study.checkpoints.items()) or "none",
        "Seeds of fine-tuning": ", ".join(map(str, study.finetune.seeds)),
        "Records": f"{len(records)} current, {done} of them ok; the graph has {len(graph)} jobs",
        "Computing time": duration(sum(record.seconds for record in records.values())),
    }


def controls(study: Study, records: Mapping[str, Record]) -> list[tuple[str, list[str]]]:
    """What a result must beat to mean anything: (quantity, values of SUBJECT, the majority class and CONTROLS)."""
    rows = []
    for task in TASKS:
        headline = glue.TASKS[task].metrics[0]
        values = [_metric(records, f"finetune/{model}/{task}", headline) for model in (SUBJECT, *CONTROLS)]
        majority = _metric(records, f"finetune/{SUBJECT}/{task}", "majority") if headline == "accuracy" else None
        if majority is not None or any(value is not None for value in values[1:]):
            rows.append((f"{task} {headline} (%)", [_percent(value) for value in (values[0], majority, *values[1:])]))
    finals = [final_job(study, model) for model in (SUBJECT, *CONTROLS)]
    losses = [_metric(records, key, "heldout_mlm_loss") for key in finals]
    if any(value is not None for value in losses[1:]):
        shown = [NOTHING if value is None else f"{value:.3f}" for value in losses]
        rows.append(("held-out masked-LM loss (nats, lower is better)", [shown[0], NOTHING, *shown[1:]]))
    return rows


def _metric(records: Mapping[str, Record], key: str | None, name: str) -> float | None:
    record = records.get(key)
    value = record.metrics.get(name) if record and record.status == "ok" else None
    return value if value is not None and math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _row(record: Record) -> dict[str, str]:
    shares = record.details.get("shares", {})
    return {
        "id": record.id,
        "status": record.status,
        "reason": record.reason or "",
        "time": duration(record.seconds),
        "seeds": ", ".join(map(str, record.config.get("seeds", [record.config["seed"]] if "seed" in record.config else []))),
        "shares": "; ".join(
            f"{split}: {' / '.join(f'{share:.0%}' for share in values)}" for split, values in shares.items() if values
        ),
        "labels": ", ".join((*record.labels, *failed_labels(record))),
        "fingerprint": record.fingerprint[:12],
    }


def _environments(records: Mapping[str, Record]) -> list[dict[str, str]]:
    """The distinct machines and package versions that the records name, with the number of records of each."""
    found: dict[tuple, int] = {}
    for record in records.values():
        machine = {key: str(value) for key, value in record.machine.items() if key != "load"}
        facts = (*sorted(machine.items()), *record.versions.items())
        found[facts] = found.get(facts, 0) + 1
    return [{"records": str(count), **dict(facts)} for facts, count in found.items()]


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
