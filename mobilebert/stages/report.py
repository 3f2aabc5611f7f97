"""Write the claims and the paper's tables with this study's cells, as Markdown and as one page."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mobilebert.claims import text
from mobilebert.claims.collect import Source, collect, sources_in
from mobilebert.claims.judge import judge
from mobilebert.jobs.context import JobContext
from mobilebert.jobs.freshness import current_records, edited_records, record_folder
from mobilebert.jobs.record import Record
from mobilebert.paper.claims import claims
from mobilebert.reporting.formats import markdown
from mobilebert.reporting.mlflow_reader import download
from mobilebert.reporting.origin import places
from mobilebert.reporting.page import render
from mobilebert.reporting.tables import FilledTable, counts, fill, in_words
from mobilebert.reporting.verdicts import expectations
from mobilebert.study.graph import build_graph, jobs_in_scope
from mobilebert.study.load import load_study
from mobilebert.study.schema import Study
from mobilebert.util.errors import UserError
from mobilebert.util.files import write_atomically
from mobilebert.util.text import markdown as escaped

TABLES, PAGE = "tables.md", "index.html"


def main(context: JobContext, study: Study) -> None:
    """Write tables.md and index.html from the current records."""
    current = current_records(context.results, study.name, context.graph)
    found = {key: current[key] for key in context.job.inputs if key in current}
    edited = edited_records(context.results, study.name, context.graph)
    sources = [Source(record, record_folder(context.results, study.name, record)) for record in found.values()]
    files, tables = _views(study, context.job.inputs, found, sources, edited, context.results / study.name, context.folder)
    for name, content in files.items():
        write_atomically(context.folder / name, content.encode())
        context.artefacts.append(name)
    numbers = counts(tables)
    context.metrics |= numbers
    context.details["summary"] = in_words(numbers)


def from_records(folder: Path, out: Path, study: str | None = None) -> str:
    """Write tables.md and index.html to `out` from the records below `folder`, whatever the code
    that made them, and return a line that says so.

    study: name or file of their study; None: the one file *.yaml in the folder, else the study that
    the records name. Claims read every timing; the tables show the first, in the order of paths.
    Raises UserError for several records of any other job, or of several studies.
    """
    sources = sources_in(folder)
    records: dict[str, Record] = {}
    for source in sources:
        records.setdefault(source.record.id, source.record)
    opened = load_study(study or _study_of(folder, sources))
    files, tables = _views(opened, jobs_in_scope(opened, build_graph(opened)), records, sources, (), folder, out)
    for name, content in files.items():
        write_atomically(out / name, content.encode())
    return f"{out / TABLES}, {out / PAGE}: {len(records)} records; {in_words(counts(tables))}"


def from_mlflow(run_id: str, out: Path) -> str:
    """Write tables.md and index.html to `out` from an MLflow run alone; return a line that says so.

    The records that the page links to lie in `out` too, in a folder named by the run. Raises
    UserError if the store cannot be read or keeps no records.
    """
    kept = out / f"mlflow-{run_id[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        study = download(run_id, Path(folder))
        shutil.rmtree(kept, ignore_errors=True)  # of the same run, read before
        shutil.copytree(folder, kept)
    return from_records(kept, out, str(kept / study.name))


def _study_of(folder: Path, sources: Sequence[Source]) -> str:
    files = sorted(folder.glob("*.yaml"))
    if len(files) > 1:
        raise UserError(f"{folder}: two studies, {files[0].name} and {files[1].name}; choose one with --study")
    return str(files[0]) if files else sources[0].record.study


def _views(
    study: Study,
    jobs: Collection[str],
    records: Mapping[str, Record],
    sources: Sequence[Source],
    edited: Collection[str],
    results: Path,
    out: Path,
) -> tuple[dict[str, str], list[FilledTable]]:
    """Return file -> content of the two views, and the filled tables.

    jobs: ids of the jobs that the study wants. results: the folder of the records, which may hold
    their logs. out: the folder of the views.
    """
    measured = collect(sources)
    findings = judge(claims(), measured)
    tables, outcomes = fill(study, records, edited), expectations(study.expect, records, edited)
    title = f"# Tables of study {escaped(study.name)}\n\n{escaped(study.description)}\n\n"
    folders: dict[str, Path] = {}
    for source in sources:
        folders.setdefault(source.record.id, source.folder)
    links = places(folders, results / "logs", out)
    page = render(study, jobs, records, tables, outcomes, edited, text.section(findings, measured), links)
    return {TABLES: f"{title}{text.markdown(findings, measured)}\n{markdown(tables)}", PAGE: page}, tables
