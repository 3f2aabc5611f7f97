"""Render the report as one HTML file that loads nothing: it holds styles, charts and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mobilebert.jobs.record import Record
from mobilebert.reporting import headline, reading
from mobilebert.reporting.cell import show
from mobilebert.reporting.figures import figures
from mobilebert.reporting.origin import Place, command_of, origin
from mobilebert.reporting.tables import LEGEND, FilledTable
from mobilebert.reporting.verdicts import MEANINGS, Outcome
from mobilebert.study.schema import Study
from mobilebert.study.stages import STAGES
from mobilebert.study.tasks import TASKS

EDITED = "changed after it was written; delete its result.json to make it again"
MOST_NAMED = 2  # records of one status that the summary names
TRAINED = ("pretrain", "checkpoint", "transfer", "distill", "finetune", "quantize")  # stages whose records share labels


def render(
    study: Study,
    jobs: Collection[str],
    records: Mapping[str, Record],
    tables: list[FilledTable],
    outcomes: list[Outcome],
    edited: Collection[str] = (),
    claims: Mapping | None = None,
    places: Mapping[str, Place] | None = None,
) -> str:
    """Return the page as HTML.

    jobs: ids of the jobs that the study wants. records: job id -> current record. edited: ids of
    edited records. claims: the section on the paper's claims, `claims.text.section`.
    places: record id -> links to its files.
    """
    common = _common_labels(records)
    heads, values = headline.headlines(study, records, tables)
    return _template("page.html.j2").render(
        study=study,
        study_name=study.name,
        answer=headline.answer(tables, outcomes, edited, claims),
        cards=headline.cards(tables, outcomes, claims),
        summary=_summary(study, jobs, records, edited),
        heads=heads,
        headlines=values,
        claims=claims,
        outcomes=outcomes,
        held=sum(item.outcome == "pass" for item in outcomes),
        judged=sum(item.outcome != "shown" for item in outcomes),
        legend=LEGEND,
        meanings=MEANINGS,
        tables=tables,
        figures=figures(records, claims),
        common=common,
        rows=[*map(_edited_row, edited), *map(_row, sorted(records.values(), key=_place))],
        environments=_environments(records),
        places=places or {},
        known={*records, *edited},
        is_page=True,
    )


def render_table(filled: FilledTable, study: str) -> str:
    """Return one table as an HTML page of its own."""
    return _template("one_table.html.j2").render(filled=filled, study_name=study, legend=LEGEND, is_page=False)


@cache
def _template(name: str):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (folder / "page.js.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shared: dict[str, Any] = {
        "cell_id": headline.cell_id,
        "kinds": kinds,
        "origin": origin,
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
        "tone": headline.tone,
    }
    environment.globals |= shared
    return environment.get_template(name)


def kinds(labels: Iterable[str]) -> str:
    """Return the kinds of labels, each once: "scaled: widths / 8" is of the kind scaled."""
    return ", ".join(dict.fromkeys(label.partition(":")[0].partition(" (")[0] for label in labels))


def _summary(study: Study, jobs: Collection[str], records: Mapping[str, Record], edited: Collection[str]) -> dict[str, str]:
    said: dict[str, list[str]] = {}
    for record in records.values():
        said.setdefault(reading.status(record), []).append(record.id)
    said["edited"] = list(edited)
    kinds = ("ok", "failed", "diverged", "void", "refused", "edited")
    found = ", ".join(f"{len(said[kind])} {kind}{_named(kind, said[kind])}" for kind in kinds if said.get(kind))
    days = sorted({record.started[:10] for record in records.values() if reading.started(record.started)})
    scale = f"widths / {study.scale.width_divisor}, layers / {study.scale.layer_divisor}"
    done = f"{sum(key in records for key in jobs)} of {len(jobs)}; " if jobs else ""
    facts = {
        "recipe": study.recipe,
        "data": study.data.source.split(":")[0],
        "scale": scale if study.scale.scaled else "the paper's",
        "checkpoints": ", ".join(f"{model}: {source}" for model, source in study.checkpoints.items()),
        "fine-tuning seeds": ", ".join(map(str, study.finetune.seeds)),
        "jobs": f"{done}{found}",
        "computing time": duration(sum(reading.seconds(record) for record in records.values())),
        "run": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
    }
    return {key: value for key, value in facts.items() if value}


def _named(kind: str, keys: Sequence[str]) -> str:
    """Return the ids of a few records that are not ok, in brackets."""
    return f" ({', '.join(keys)})" if kind != "ok" and len(keys) <= MOST_NAMED else ""


def _common_labels(records: Mapping[str, Record]) -> tuple[str, ...]:
    """Return the labels that all trained models and scores have; () for fewer than two of them."""
    found = [reading.labels(record) for record in records.values() if record.stage in TRAINED]
    return tuple(label for label in found[0] if all(label in labels for labels in found)) if found[1:] else ()


def _row(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "status": reading.status(record),
        "reason": reading.reason(record),
        "result": _result(record),
        "metrics": [(key, f"{reading.number(value):.6g}") for key, value in record.metrics.items() if reading.is_number(value)],
        "started": record.started,
        "time": duration(reading.seconds(record)),
        "seeds": ", ".join(reading.seeds(record)),
        "shares": "; ".join(
            f"{split}: {' / '.join(f'{share:.0%}' for share in values)}" for split, values in reading.shares(record).items()
        ),
        "labels": (*reading.labels(record), *reading.failed_labels(record)),
        "fingerprint": record.fingerprint,
        "command": command_of(record.id, record.study),
    }


def _edited_row(key: str) -> dict[str, Any]:
    empty = dict.fromkeys(("result", "started", "time", "seeds", "shares", "fingerprint", "command"), "")
    return {"id": key, "status": "edited", "reason": EDITED, "metrics": (), "labels": (), **empty}


def _place(record: Record) -> tuple[int, str]:
    """Return the place of a record among others: the order of stages, then of names."""
    order = list(STAGES)
    return order.index(record.stage) if record.stage in order else len(order), record.id


def _result(record: Record) -> str:
    """Return the record's headline value in words; "" if it has none."""
    task = TASKS.get(record.name.partition("/")[2])
    name = task.metrics[0] if reading.is_score(record) and task else "heldout_mlm_loss"
    value = reading.number(record.metrics.get(name))
    if value != value or record.status != "ok":
        return ""
    return f"{show(100 * value, '%')} % {name.replace('_', ' ')}" if reading.is_score(record) else f"{value:.3f} nat, held-out"


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
