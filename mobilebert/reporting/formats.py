"""Print filled tables: Markdown, text for a terminal, LaTeX, CSV and JSON.

The page prints the same `FilledTable` in HTML, by table.html.j2.
"""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterator

from mobilebert.paper import Column
from mobilebert.reporting.cell import NOTHING, Cell
from mobilebert.reporting.origin import origin
from mobilebert.reporting.tables import LEGEND, FilledRow, FilledTable
from mobilebert.util.files import json_safe
from mobilebert.util.text import markdown as escaped
from mobilebert.util.text import one_line

WIDTH = 120  # columns of a terminal
QUIET = "·"  # a cell that was not run, in a terminal

# --- Markdown


def markdown(filled: list[FilledTable]) -> str:
    """Return the tables as Markdown, each under a heading `## Table N`."""
    return "\n\n".join([LEGEND, *(_markdown_table(table) for table in filled)]) + "\n"


def _markdown_table(filled: FilledTable) -> str:
    lines = [f"## Table {filled.number}", "", f"{filled.table.title}.", ""]
    if filled.common:
        lines += [f"All scores: {escaped(', '.join(filled.common))}.", ""]
    lines += [_line(["", "", *filled.heads]), _line(["---", "---", *["--:"] * len(filled.heads)])]
    for row in filled.rows:
        lines.append(_line([_plain(row.label), "published", *[_plain(cell.published_text) for cell in row.cells]]))
        if row.row.model is not None:
            lines.append(_line([_plain(row.label), "measured", *[_plain(_measured_text(filled, cell)) for cell in row.cells]]))
    notes = [f"[{number}] {escaped(', '.join(labels))}" for number, labels in enumerate(filled.labels, 1)]
    notes += [_plain(note) for note in filled.notes]
    if notes:
        lines += ["", *[f"- {note}" for note in notes]]
    return "\n".join(lines)


def _measured_text(filled: FilledTable, cell: Cell) -> str:
    if cell.verdict is None:
        return NOTHING
    text = cell.measured_text
    if cell.verdict != text:
        text += f", {cell.verdict}"
    mark = filled.mark(cell)
    return f"{text} [{mark}]" if mark else text


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Return one of our texts (a row's label, a note), escaped for Markdown."""
    for sign in "\\|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text


# --- a terminal


def text(filled: FilledTable) -> str:
    """Return a table for a terminal, at most WIDTH columns wide.

    A row has up to three lines: published, measured and the verdicts. If the columns do not fit,
    they follow in blocks.
    """
    lines = [f"Table {filled.number}. {filled.table.title}", ""]
    if filled.common:
        lines += [*_wrapped(f"All scores: {', '.join(filled.common)}."), ""]
    labels = [row.label for row in filled.rows]
    first = max(map(len, labels)) + 2
    columns = [_column(filled, place) for place in range(len(filled.heads))]
    widths = [max(len(cell) for lines in column for cell in lines) for column in columns]
    while columns:
        count = 1
        while count < len(columns) and first + 12 + sum(width + 2 for width in widths[: count + 1]) <= WIDTH:
            count += 1
        lines += [*_block(labels, first, columns[:count], widths[:count]), ""]
        columns, widths = columns[count:], widths[count:]
    lines += [line for number, own in enumerate(filled.labels, 1) for line in _wrapped(f"[{number}] {', '.join(own)}")]
    lines += [line for note in filled.notes for line in _wrapped(f"- {note}")]
    return "\n".join([*lines, "", *_wrapped(f"{LEGEND} In this output {QUIET} means not run.")]) + "\n"


def _column(filled: FilledTable, place: int) -> list[tuple[str, str, str]]:
    """Return three texts for the heading and for each row: published, measured, verdict."""
    found = [(filled.heads[place], "", "")]
    for row in filled.rows:
        cell = row.cells[place]
        value, verdict = _measured_lines(filled, cell) if row.row.model is not None else ("", "")
        found.append((cell.published_text, value, verdict))
    return found


def _measured_lines(filled: FilledTable, cell: Cell) -> tuple[str, str]:
    if cell.verdict is None:
        return NOTHING, ""
    if cell.verdict == "not run":
        return QUIET, ""
    mark = filled.mark(cell)
    value, verdict = cell.measured_text, "" if cell.verdict == cell.measured_text else cell.verdict
    return (f"{value} [{mark}]" if mark else value), verdict


def _block(labels: list[str], first: int, columns: list[list[tuple[str, str, str]]], widths: list[int]) -> Iterator[str]:
    for place, label in enumerate(["", *labels]):
        for line, kind in enumerate(("published", "measured", "")):
            cells = [column[place][line] for column in columns]
            if any(cells):
                head = f"{label if line == 0 else '':{first}}{kind if place else '':10}"
                yield f"{head}{''.join(f'  {cell:>{width}}' for cell, width in zip(cells, widths, strict=True))}".rstrip()


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(one_line(line), WIDTH, subsequent_indent="    ", break_on_hyphens=False)


# --- LaTeX

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "–": "--",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "|": r"\textbar{}",
}
_LATIN = set(map(chr, range(0xA1, 0x100))) - set("«»ÐÞðþ")  # not ASCII, and in every encoding of TeX's fonts


def latex(filled: FilledTable) -> str:
    """Return a table in LaTeX, for a document with the packages booktabs and graphicx."""
    columns = len(filled.heads)
    head = " & ".join(["", "", *map(_latex, filled.heads)])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(filled.table.title)}}}",
        rf"\label{{tab:mobilebert-{filled.number}}}",
    ]
    lines += [r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{ll{'r' * columns}}}", r"\toprule", rf"{head} \\", r"\midrule"]
    for row in filled.rows:
        lines.append(_latex_line(row.label, "published", [cell.published_text for cell in row.cells]))
        if row.row.model is not None:
            lines.append(_latex_line("", "measured", [_measured_text(filled, cell) for cell in row.cells]))
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\raggedright\footnotesize"]
    common = [f"All scores: {', '.join(filled.common)}."] if filled.common else []
    own = [f"[{number}] {', '.join(labels)}" for number, labels in enumerate(filled.labels, 1)]
    lines += [rf"{_latex(note)}\par" for note in [*common, *own, *filled.notes]]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_line(label: str, kind: str, cells: list[str]) -> str:
    return rf"{' & '.join(map(_latex, [label, kind, *cells]))} \\"


def _latex(words: str) -> str:
    """Return a text in LaTeX; "U+6F22" in place of a sign at which pdflatex would stop."""
    signs = (sign if sign.isascii() or sign in _LATIN or sign in _LATEX else f"U+{ord(sign):04X}" for sign in one_line(words))
    return "".join(_LATEX.get(sign, sign) for sign in signs)


# --- one row a cell


def cell_rows(filled: FilledTable, study: str) -> list[dict]:
    """Return each cell of a table: its row and column, published and measured value, spread, n,
    verdict, labels, the record behind it and the command that makes it."""
    return [
        _cell_row(filled, row, column, cell, study)
        for row in filled.rows
        for column, cell in zip(filled.table.columns, row.cells, strict=True)
    ]


def _cell_row(filled: FilledTable, row: FilledRow, column: Column, cell: Cell, study: str) -> dict:
    source = origin(row, column, cell, filled.number, study)
    found = {"table": filled.number, "row": row.label, "model": row.row.model, "column": column.head, "unit": column.unit}
    found |= {"published": cell.published, "measured": _counted(cell), "spread": cell.spread, "n": cell.count}
    found |= {"verdict": cell.verdict, "labels": list(cell.labels)}
    return found | {"record": " ".join(source.records) or None, "command": source.command}


def _counted(cell: Cell):
    """Return the measured value; None if it does not count, as a void time."""
    hidden = cell.verdict in ("void", "diverged", "refused", "edited", "not run")
    return None if hidden or (isinstance(cell.measured, float) and not math.isfinite(cell.measured)) else cell.measured


def as_json(filled: FilledTable, study: str) -> str:
    """Return a table as JSON, with a list of cells."""
    content = {"table": filled.number, "title": filled.table.title, "study": study, "notes": filled.notes}
    return json.dumps(json_safe(content | {"cells": cell_rows(filled, study)}), indent=1) + "\n"  # ASCII, for any terminal


def as_csv(filled: FilledTable, study: str) -> str:
    """Return a table as CSV, a line a cell; "; " joins a list, and a missing value is empty."""
    out = io.StringIO()
    rows = cell_rows(filled, study)
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _field(value) for key, value in row.items()})
    return out.getvalue()


def _field(value):
    """Return a value for CSV. Labels, which a study may word, get a quote before what a spreadsheet
    takes for a formula; the paper's own names, such as "+ PD", stay."""
    if not isinstance(value, list):
        return one_line(value) if isinstance(value, str) else value
    text = one_line("; ".join(map(str, value)))
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


# --- by name

PRINTERS: dict[str, Callable[[FilledTable, str], str]] = {
    "text": lambda filled, _: text(filled),
    "md": lambda filled, _: markdown([filled]),
    "latex": lambda filled, _: latex(filled),
    "csv": as_csv,
    "json": as_json,
}
