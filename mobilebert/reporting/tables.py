"""Fill the paper's tables: every published cell beside the value that this study measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from mobilebert import paper
from mobilebert.evaluation.glue import LEADERBOARD, glue_score, mean_of_cells
from mobilebert.jobs.record import Record
from mobilebert.reporting import latency_cells, pretraining_seeds, reading, verdicts
from mobilebert.reporting.architecture_columns import facts
from mobilebert.reporting.cell import NOTHING, Cell, show
from mobilebert.study.architecture import architecture
from mobilebert.study.graph import cell_job
from mobilebert.study.schema import Study
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError


@dataclass(frozen=True)
class FilledRow:
    """A row of the paper with its filled cells."""

    row: paper.Row
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """Return the row's label with its marks."""
        return f"{self.row.label} {self.row.marks}".strip()


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper with its filled rows."""

    table: paper.Table
    rows: tuple[FilledRow, ...]

    @property
    def number(self) -> int:
        """Return the table's number in the paper."""
        return self.table.number

    @property
    def heads(self) -> list[str]:
        """Return the headings of the columns, with their units."""
        return [f"{column.head} ({column.unit})" if column.unit else column.head for column in self.table.columns]

    @cached_property
    def common(self) -> tuple[str, ...]:
        """Return the labels that all scores of the table have; () for fewer than two scores."""
        scores = [
            cell.labels
            for row in self.rows
            for column, cell in zip(self.table.columns, row.cells, strict=True)
            if column.source in ("finetune", "glue") and cell.verdict not in (None, "not run")
        ]
        return tuple(label for label in scores[0] if all(label in labels for labels in scores)) if scores[1:] else ()

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """Return the labels of single cells, every set once: footnote n is `labels[n - 1]`."""
        found = {frozenset(own): own for row in self.rows for cell in row.cells if (own := self._own(cell))}
        return list(found.values())

    def _own(self, cell: Cell) -> tuple[str, ...]:
        return tuple(label for label in cell.labels if label not in self.common)

    @property
    def notes(self) -> list[str]:
        """Return the table's notes.

        If the table has a GLUE column, the last note gives the mean of each row's printed cells,
        which other papers quote as "GLUE".
        """
        notes = list(self.table.notes)
        if any(column.source == "glue" for column in self.table.columns):
            means = "; ".join(f"{row.label} {published} / {measured}" for row, published, measured in self._means())
            notes.append(
                "Mean of the printed cells, MNLI-m and MNLI-mm as one task, without WNLI; computed here, the paper prints none. "
                f"Of the published cells / of the measured ones: {means}."
            )
        return notes

    def _means(self) -> list[tuple[FilledRow, str, str]]:
        """Return (row, published mean, measured mean) for each row that this suite runs.

        The means are texts. A mean is NOTHING if one of its cells has no value. The measured mean
        names the footnotes of its cells.
        """
        found = []
        for row in self.rows:
            cells = {column.key: cell for column, cell in zip(self.table.columns, row.cells) if column.source == "finetune"}
            both = ({key: _finite(getattr(cell, side)) for key, cell in cells.items()} for side in ("published", "measured"))
            means = [
                show(None if None in values.values() else mean_of_cells(cast(dict[str, float], values)), "%") for values in both
            ]
            if row.row.model is not None:
                marks = sorted({mark for cell in cells.values() if (mark := self.mark(cell))}) if means[1] != NOTHING else []
                found.append((row, means[0], " ".join([means[1], *(f"[{mark}]" for mark in marks)])))
        return found

    def mark(self, cell: Cell) -> int | None:
        """Return the number of the cell's footnote; None if it has no labels of its own."""
        own = frozenset(self._own(cell))
        return [frozenset(labels) for labels in self.labels].index(own) + 1 if own else None


def fill(study: Study, records: Mapping[str, Record], edited: Collection[str] = ()) -> list[FilledTable]:
    """Return Tables 1 to 9, filled from `records`.

    records: the record of each job, by job id.
    edited: ids of records that were changed after they were written; their cells show no value.
    """
    return [fill_table(paper.table(number), study, records, edited) for number in range(1, 10)]


def fill_table(table: paper.Table, study: Study, records: Mapping[str, Record], edited: Collection[str] = ()) -> FilledTable:
    """Return one table, filled from `records` as `fill`, with latency columns for each engine."""
    table = latency_cells.with_engines(table, records.get("latency"))
    rows = []
    for row in table.rows:
        rows.append(FilledRow(row, tuple(_cell(study, table, row, column, records, edited) for column in table.columns)))
    return FilledTable(table, tuple(rows))


def counts(tables: list[FilledTable]) -> dict[str, int]:
    """Return how many cells are of each kind, and how many have each verdict.

    A cell is `measured` (from a record), `computed` (from a configuration) or `not_run` (no
    record). The keys of verdicts are `measured_match`, `computed_match`, ...
    """
    found = {"measured": 0, "not_run": 0, "computed": 0}
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.table.columns, row.cells, strict=True):
                if cell.verdict == "not run":
                    found["not_run"] += 1
                elif cell.verdict:
                    kind = "computed" if column.source in ("architecture", "cost") else "measured"
                    name = f"{kind}_{cell.verdict.replace(' ', '_')}"
                    found[kind] += 1
                    found[name] = found.get(name, 0) + 1
    return found


def in_words(numbers: Mapping[str, int]) -> str:
    """Return `counts` as one line of text."""
    parts = []
    for kind in ("measured", "computed"):
        kinds = {name.removeprefix(f"{kind}_"): count for name, count in numbers.items() if name.startswith(f"{kind}_")}
        shown = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(kinds.items()))
        parts.append(f"{numbers[kind]} {kind}" + (f" ({shown})" if shown else ""))
    return f"{parts[0]}, {numbers['not_run']} not run; {parts[1]} from the configurations alone"


def _cell(
    study: Study,
    table: paper.Table,
    row: paper.Row,
    column: paper.Column,
    records: Mapping[str, Record],
    edited: Collection[str],
) -> Cell:
    published = latency_cells.published(table, row, column) if column.source == "latency" else row.published.get(column.key)
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
    keys = [f"finetune/{row.model}/{task}" for task in LEADERBOARD] if column.source == "glue" else [cell_job(row, column) or ""]
    if changed := [key for key in keys if key in edited]:
        note = f"edited: {', '.join(changed)}: changed after it was written; delete its result.json to make it again"
        return Cell(published, None, "edited", column.unit, labels=(note,))
    if column.source == "glue":
        return _glue_cell(row, column, records)
    record = records.get(keys[0])
    if column.source == "latency":
        return latency_cells.cell(row, column, record, latency_cells.published(table, row, column))
    cells = [_score_cell(row, column, item) for item in pretraining_seeds.records_of(row.model, keys[0], records, edited)]
    return pretraining_seeds.pooled(column, cells)


def _score_cell(row: paper.Row, column: paper.Column, record: Record | None) -> Cell:
    published, metric = row.published.get(column.key), column.metric or ""
    if record is None or (record.status == "ok" and metric not in record.metrics):
        return Cell(published, None, "not run", column.unit)
    measured, labels = reading.fraction_in_percent(record.metrics.get(metric)), reading.labels(record)
    verdict = verdicts.cell(published, measured, column.tolerance, labels, reading.status(record), column.relative)
    labels += reading.diverged_labels(record, metric)
    if math.isnan(measured) or record.status != "ok":
        return Cell(published, None, "diverged" if verdict == "failed" else verdict, column.unit, labels=labels)
    values = reading.samples(record, metric)
    if row.precision == "int8":
        labels += _best_seed(record, metric)
    labels += reading.failed_labels(record, metric)
    count = max(1, sum(map(math.isfinite, values)))
    return Cell(published, measured, verdict, column.unit, reading.spread(values), count, labels)


def _best_seed(record: Record, metric: str) -> tuple[str, ...]:
    """Return the footnote on an int8 score if there are several seeds.

    The int8 model is made from the best seed, but the float row above shows the seeds' median.
    """
    before, seeds = reading.samples(record, f"float_{metric}"), reading.seeds(record)
    if len(seeds) < 2 or len(before) != 1:
        return ()
    return (f"of the best of {len(seeds)} seeds, {show(before[0], '%')} in float",)


def _glue_cell(row: paper.Row, column: paper.Column, records: Mapping[str, Record]) -> Cell:
    """Return the cell of the GLUE score, computed from the row's development scores.

    It is "not run" unless all nine tasks have a score. It is "failed" if any task but WNLI failed:
    on WNLI all models of the paper's time answer the majority class.
    """
    published = row.published.get(column.key)
    mine = {task: record for task in LEADERBOARD if (record := records.get(f"finetune/{row.model}/{task}"))}
    for status in ("diverged", "refused", "void"):
        if any(record.status == status for record in mine.values()):
            return Cell(published, None, status, column.unit)
    scores: dict[str, Mapping] = {task: record.metrics for task, record in mine.items()}
    if "mismatched_accuracy" in scores.get("mnli", {}):
        scores["mnli_mismatched"] = {"accuracy": scores["mnli"]["mismatched_accuracy"]}
    if any(value is None for metrics in scores.values() for value in metrics.values()):
        return Cell(published, None, "diverged", column.unit)
    try:
        measured = reading.fraction_in_percent(glue_score(scores))
    except UserError:
        return Cell(published, None, "not run", column.unit)
    labels = tuple(dict.fromkeys(label for record in mine.values() for label in reading.labels(record)))
    failed = any(reading.status(record) == "failed" for task, record in mine.items() if task != "wnli")
    verdict = verdicts.cell(published, measured, column.tolerance, labels, "failed" if failed else "ok", column.relative)
    ended = []
    for task, record in mine.items():
        metric = TASKS[task].metrics[0]
        notes = (*reading.diverged_labels(record, metric), *reading.failed_labels(record))
        labels += tuple(f"{task}: {text}" for text in notes)
        ended.append(max(1, sum(map(math.isfinite, reading.samples(record, metric)))))
    return Cell(published, measured, verdict, column.unit, count=min(ended), labels=labels)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


LEGEND = (
    "The first line of a row is published (Sun et al., ACL 2020). Its second line is measured by this study: the median over "
    "n seeds ± their standard deviation, and the verdict on the published value. If a row has several pre-training seeds, the "
    "value is the mean over them, a footnote says so, and the GLUE score is that of the first. A seed has failed if its model "
    "predicts one class, if its score is not above guessing by one standard error, or if its training loss did not fall. A "
    "failed seed counts in the median, and a footnote says so. If at least half of a cell's seeds failed or diverged, the cell "
    "says failed and is not judged. Shapes, parameters and FLOPs are computed from the configurations at the paper's widths. "
    "This suite does not run a row that has no second line."
)
