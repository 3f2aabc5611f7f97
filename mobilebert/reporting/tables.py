"""The paper's tables, filled: every published cell beside what this run measured, and nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from mobilebert import paper
from mobilebert.architecture import architecture
from mobilebert.config import Study
from mobilebert.data.glue import TASKS
from mobilebert.errors import UserError
from mobilebert.evaluation.glue import LEADERBOARD, glue_score, mean_of_cells
from mobilebert.jobs import cell_job
from mobilebert.records import Record
from mobilebert.reporting import verdicts
from mobilebert.reporting.facts import facts

NOTHING = "–"  # the paper prints no value, or the model has no such part


@dataclass(frozen=True)
class Cell:
    """One cell, both values in the column's unit. `spread` is the standard deviation over `count` seeds."""

    published: float | str | list | None
    measured: float | str | list | None
    verdict: verdicts.Verdict | None  # None: nothing is measured in this cell
    unit: str = ""
    spread: float | None = None
    count: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def published_text(self) -> str:
        return show(self.published, self.unit, measured=False)

    @property
    def measured_text(self) -> str:
        """The value with its spread; what became of it where there is none."""
        if self.verdict in ("not run", "diverged", "refused", "void"):
            return self.verdict
        text = show(self.measured, self.unit)
        if self.spread is not None:
            text += f" ± {show(self.spread, self.unit)}"
        return f"{text} (n={self.count})" if self.count else text


@dataclass(frozen=True)
class FilledRow:
    row: paper.Row
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        return f"{self.row.label} {self.row.marks}".strip()


@dataclass(frozen=True)
class FilledTable:
    table: paper.Table
    rows: tuple[FilledRow, ...]

    @property
    def number(self) -> int:
        return self.table.number

    @property
    def heads(self) -> list[str]:
        return [f"{column.head} ({column.unit})" if column.unit else column.head for column in self.table.columns]

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """The distinct labels of the cells, in order: footnote n is `labels[n - 1]`."""
        return list(dict.fromkeys(cell.labels for row in self.rows for cell in row.cells if cell.labels))

    @property
    def notes(self) -> list[str]:
        """The table's notes; beside a GLUE column also the means of printed cells, which papers quote as "GLUE" too."""
        notes = list(self.table.notes)
        if any(column.source == "glue" for column in self.table.columns):
            means = "; ".join(f"{row.label} {published} / {measured}" for row, published, measured in self._means())
            notes.append(
                "Mean of the printed cells, MNLI-m and MNLI-mm as one task, without WNLI; computed here, the paper prints none. "
                f"Of the published cells / of the measured ones: {means}."
            )
        return notes

    def _means(self) -> list[tuple[FilledRow, str, str]]:
        """Of each row that this suite runs both means as text, beside the measured one the footnotes of its cells; NOTHING where
        a cell has no value."""
        found = []
        for row in self.rows:
            cells = {column.key: cell for column, cell in zip(self.table.columns, row.cells) if column.source == "finetune"}
            both = ({key: _finite(getattr(cell, side)) for key, cell in cells.items()} for side in ("published", "measured"))
            means = [show(None if None in values.values() else mean_of_cells(values), "%") for values in both]
            if row.row.model is not None:
                marks = sorted({mark for cell in cells.values() if (mark := self.mark(cell))}) if means[1] != NOTHING else []
                found.append((row, means[0], " ".join([means[1], *(f"[{mark}]" for mark in marks)])))
        return found

    def mark(self, cell: Cell) -> int | None:
        """Number of the cell's footnote."""
        return self.labels.index(cell.labels) + 1 if cell.labels else None


def fill(study: Study, records: Mapping[str, Record]) -> list[FilledTable]:
    """Tables 1 to 9 with the cells of `records` (job id -> current record)."""
    return [fill_table(paper.table(number), study, records) for number in range(1, 10)]


def fill_table(table: paper.Table, study: Study, records: Mapping[str, Record]) -> FilledTable:
    rows = []
    for row in table.rows:
        rows.append(FilledRow(row, tuple(_cell(study, row, column, records) for column in table.columns)))
    return FilledTable(table, tuple(rows))


def _cell(study: Study, row: paper.Row, column: paper.Column, records: Mapping[str, Record]) -> Cell:
    published = row.published.get(column.key)
    if row.model is None or column.source == "text":
        return Cell(published, None, None, column.unit)
    if column.source in ("architecture", "cost"):
        config = architecture(study, row.model, full_size=column.source == "architecture")
        measured = facts(config)[column.metric]
        labels = ("scaled",) if column.source == "cost" and study.scale.scaled else ()
        if published is None and measured is None:
            return Cell(None, None, None, column.unit)
        verdict = verdicts.cell(published, measured, column.tolerance, labels, relative=column.relative)
        return Cell(published, measured, verdict, column.unit, labels=labels)
    if column.source == "glue":
        return _glue_cell(row, column, records)
    record = records.get(cell_job(row, column))
    if column.source == "latency":
        return _latency_cell(row, column, record)
    return _score_cell(row, column, record)


def _score_cell(row: paper.Row, column: paper.Column, record: Record | None) -> Cell:
    published = row.published.get(column.key)
    if record is None or (record.status == "ok" and column.metric not in record.metrics):
        return Cell(published, None, "not run", column.unit)
    measured, labels = _percent(record.metrics.get(column.metric)), record.labels
    verdict = verdicts.cell(published, measured, column.tolerance, labels, record.status, column.relative)
    finite, diverged = _seeds(record, column.metric)
    spread = statistics.stdev(finite) if len(finite) > 1 else None
    labels += diverged
    if record.status != "ok":
        return Cell(published, None, verdict, column.unit, labels=labels)
    if row.precision == "int8" and len(record.config.get("seeds", ())) > 1:  # not the median, as the float row above it
        (before,) = record.samples[f"float_{column.metric}"]
        labels += (f"of the best of {len(record.config['seeds'])} seeds, {show(_percent(before), '%')} in float",)
    labels += failed_labels(record, column.metric)
    return Cell(published, measured, verdict, column.unit, spread, max(1, len(finite)), labels)


def _seeds(record: Record, metric: str) -> tuple[list[float], tuple[str, ...]]:
    """A metric of the seeds that ended, in percent, and what to say of those that diverged."""
    samples = [_percent(value) for value in record.samples.get(metric, [])]
    finite = [value for value in samples if math.isfinite(value)]
    missing = len(samples) - len(finite)
    return finite, (f"{missing} of {len(samples)} seeds diverged",) if missing else ()


def failed_labels(record: Record, metric: str | None = None) -> tuple[str, ...]:
    """What to say of runs that ended without having learnt (`training.runs.failure`), and the median of the others."""
    statuses = record.details.get("statuses", [])
    failed = statuses.count("failed")
    if not failed:
        return ()
    text = f"{failed} of {len(statuses)} runs failed"
    figures = record.details.get("summary", {}).get(metric)
    if figures and figures["n_ok"]:
        text += f", the median of the other {figures['n_ok']} is {show(_percent(figures['median_ok']), '%')}"
    return (text,)


def _glue_cell(row: paper.Row, column: paper.Column, records: Mapping[str, Record]) -> Cell:
    """The leaderboard's formula over the row's own development scores; fewer than nine tasks give no score."""
    published = row.published.get(column.key)
    mine = {task: records.get(f"finetune/{row.model}/{task}") for task in LEADERBOARD}
    there = [record for record in mine.values() if record]
    for status in ("diverged", "refused", "void"):
        if any(record.status == status for record in there):
            return Cell(published, None, status, column.unit)
    scores: dict[str, Mapping] = {task: record.metrics for task, record in mine.items() if record}
    if "mismatched_accuracy" in scores.get("mnli", {}):
        scores["mnli_mismatched"] = {"accuracy": scores["mnli"]["mismatched_accuracy"]}
    if any(value is None for metrics in scores.values() for value in metrics.values()):
        return Cell(published, None, "diverged", column.unit)
    try:
        measured = _percent(glue_score(scores))
    except UserError:
        return Cell(published, None, "not run", column.unit)
    labels = tuple(dict.fromkeys(label for record in there for label in record.labels))
    verdict = verdicts.cell(published, measured, column.tolerance, labels, relative=column.relative)
    seeds = {task: _seeds(record, TASKS[task].metrics[0]) for task, record in mine.items()}
    labels += tuple(f"{task}: {text}" for task, record in mine.items() for text in (*seeds[task][1], *failed_labels(record)))
    count = min(max(1, len(finite)) for finite, _ in seeds.values())
    return Cell(published, measured, verdict, column.unit, count=count, labels=labels)


def _latency_cell(row: paper.Row, column: paper.Column, record: Record | None) -> Cell:
    """The first engine's figure: metric `<model>/<engine>:p50_ms`, every round's samples under `<model>/<engine>`."""
    published = row.published.get(column.key)
    engine = record.config["engines"][0] if record else None
    key = f"{row.model}/{engine}:{column.metric}"
    if record is None or (record.status == "ok" and key not in record.metrics):
        return Cell(published, None, "not run", column.unit)
    setting = f"{engine}, {record.config['threads']} threads, length {record.config['length']}, median of rounds"
    labels = (*record.labels, setting)
    measured = record.metrics.get(key)
    measured = math.nan if measured is None else measured
    verdict = verdicts.cell(published, measured, column.tolerance, labels, record.status, column.relative)
    count = len(record.samples.get(f"{row.model}/{engine}", [])) or None
    return Cell(published, measured, verdict, column.unit, count=count, labels=labels)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _percent(fraction: float | None) -> float:
    return math.nan if fraction is None else 100 * fraction


def show(value, unit: str = "", measured: bool = True) -> str:
    """A value as a cell prints it; a published number keeps the paper's digits."""
    if value is None:
        return NOTHING
    if isinstance(value, list):
        return "/".join(str(int(item)) if isinstance(item, float) else str(item) for item in value)
    if isinstance(value, str):
        return value
    if unit == "%" or (measured and unit in ("M", "ms")):
        return f"{value:.1f}"
    return f"{value:.2f}" if measured and unit == "G" else f"{value:g}"


LEGEND = (
    "A row's first line is published (Sun et al., ACL 2020), its second what this study measured: the median over n "
    "seeds ± their standard deviation, and the verdict on the published value. A run that predicts one class, is not above "
    "guessing by one standard error, or whose training loss did not fall has failed: it counts, and a footnote says so. "
    "Shapes, parameters and FLOPs are "
    "computed from the configurations at the paper's widths. A row without a second line is not run by this suite."
)


def markdown(filled: list[FilledTable]) -> str:
    """Tables as Markdown, each under a heading `## Table N`."""
    return "\n\n".join([LEGEND, *(_markdown_table(table) for table in filled)]) + "\n"


def _markdown_table(filled: FilledTable) -> str:
    lines = [f"## Table {filled.number}", "", f"{filled.table.title}.", ""]
    lines += [_line(["", "", *filled.heads]), _line(["---", "---", *["--:"] * len(filled.heads)])]
    for row in filled.rows:
        lines.append(_line([_plain(row.label), "published", *[_plain(cell.published_text) for cell in row.cells]]))
        if row.row.model is not None:
            lines.append(_line([_plain(row.label), "measured", *[_measured(filled, cell) for cell in row.cells]]))
    notes = [f"[{number}] {', '.join(labels)}" for number, labels in enumerate(filled.labels, 1)]
    notes += filled.notes
    if notes:
        lines += ["", *[f"- {_plain(note)}" for note in notes]]
    return "\n".join(lines)


def _measured(filled: FilledTable, cell: Cell) -> str:
    if cell.verdict is None:
        return NOTHING
    text = cell.measured_text
    if cell.verdict != text:
        text += f", {cell.verdict}"
    mark = filled.mark(cell)
    return _plain(f"{text} [{mark}]" if mark else text)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for sign in "\\|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text
