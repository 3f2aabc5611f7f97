"""The paper's tables with this study's cells, as Markdown and inside one HTML page."""

from __future__ import annotations

from mobilebert import records
from mobilebert.config import Study
from mobilebert.reporting.page import render
from mobilebert.reporting.tables import counts, fill, in_words, markdown
from mobilebert.reporting.text import markdown as escaped
from mobilebert.reporting.verdicts import expectations


def run(run: records.Run, study: Study) -> None:
    current = records.current(run.results, study.name, run.graph)
    found = {key: current[key] for key in run.job.inputs if key in current}
    edited = records.edited(run.results, study.name, run.graph)
    tables, outcomes = fill(study, found, edited), expectations(study.expect, found, edited)
    title = f"# Tables of study {escaped(study.name)}\n\n{escaped(study.description)}\n\n"
    page = render(study, run.graph, found, tables, outcomes, edited)
    for name, text in (("tables.md", title + markdown(tables)), ("index.html", page)):
        records.write_atomically(run.folder / name, text.encode())
        run.artefacts.append(name)
    run.metrics |= counts(tables)
    run.details["summary"] = in_words(run.metrics)
