"""Write the paper's tables with this study's cells, as Markdown and as one HTML page."""

from __future__ import annotations

from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import current_records, edited_records
from mobilebert.reporting.formats import markdown
from mobilebert.reporting.page import render
from mobilebert.reporting.tables import counts, fill, in_words
from mobilebert.reporting.verdicts import expectations
from mobilebert.study.schema import Study
from mobilebert.util.files import write_atomically
from mobilebert.util.text import markdown as escaped


def main(context: JobContext, study: Study) -> None:
    """Write tables.md and index.html from the current records."""
    current = current_records(context.results, study.name, context.graph)
    found = {key: current[key] for key in context.job.inputs if key in current}
    edited = edited_records(context.results, study.name, context.graph)
    tables, outcomes = fill(study, found, edited), expectations(study.expect, found, edited)
    title = f"# Tables of study {escaped(study.name)}\n\n{escaped(study.description)}\n\n"
    page = render(study, context.graph, found, tables, outcomes, edited)
    for name, text in (("tables.md", title + markdown(tables)), ("index.html", page)):
        write_atomically(context.folder / name, text.encode())
        context.artefacts.append(name)
    numbers = counts(tables)
    context.metrics |= numbers
    context.details["summary"] = in_words(numbers)
