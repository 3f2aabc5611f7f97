"""The paper's tables with this study's cells, as Markdown and inside one HTML page."""

from __future__ import annotations

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting.page import render
from mobilebert.reporting.tables import fill, markdown
from mobilebert.reporting.verdicts import expectations


def run(run: records.Run, study: Study) -> None:
    current = records.current(run.results, study.name, run.graph)
    found = {key: current[key] for key in run.job.inputs if key in current}
    tables, outcomes = fill(study, found), expectations(study.expect, found)
    title = f"# Tables of study {study.name}\n\n{study.description.strip()}\n\n"
    page = render(study, run.graph, found, tables, outcomes)
    for name, text in (("tables.md", title + markdown(tables)), ("index.html", page)):
        records.write_atomically(run.folder / name, text.encode())
        run.artefacts.append(name)
    cells = [cell.verdict for table in tables for row in table.rows for cell in row.cells if cell.verdict]
    run.metrics |= {verdict.replace(" ", "_"): cells.count(verdict) for verdict in sorted(set(cells))}
