"""Run a stage, or print a table of its records."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mobilebert.cli import latency
from mobilebert.cli.options import positive, prepare_environment
from mobilebert.study.stages import STAGES
from mobilebert.util.errors import UserError, allowed, shown

DEFAULT = "smoke"

if TYPE_CHECKING:
    from mobilebert.jobs.folder import RecordFolder
    from mobilebert.jobs.record import Record

FORMATS = ("text", "md", "latex", "csv", "json", "html")  # of a table; reporting.formats imports torch


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add a command for every stage, and `table`."""
    for stage in STAGES.values():
        one = commands.add_parser(stage.name, help=stage.help, description=stage.help)
        if stage.takes:
            one.add_argument("name", help=stage.takes)
        _add_study(one)
        default = None if stage.name == "latency" else 1  # a phone refuses the option
        one.add_argument("--threads", type=positive, default=default, help="CPU threads (default 1)")
        one.set_defaults(func=run_stage)
        if stage.name == "track":
            one.add_argument(
                "--live",
                action="store_true",
                help="follow running stages and stream their curves, until none has run for 30 seconds",
            )
            one.add_argument(
                "--models", action="store_true", help="register the fine-tuned models too, which copies their weights"
            )
            one.set_defaults(func=track)
        if stage.name == "latency":
            latency.add_options(one)
            one.set_defaults(func=time)
        if stage.name == "report":
            _add_records(one)
            one.add_argument("--from-mlflow", metavar="RUN", help="read the MLflow run of a study from MLFLOW_TRACKING_URI alone")
            one.add_argument(
                "--out", type=Path, help="the folder to write to (default: that of the records; with --from-mlflow: report)"
            )
            one.set_defaults(func=report)
    table = commands.add_parser("table", help="print one of the paper's tables from the records")
    table.add_argument("number", type=int, choices=range(1, 10), metavar="N")
    table.add_argument("--format", choices=FORMATS, help="default: text in a terminal, else md")
    table.add_argument("--records", type=Path, metavar="FOLDER", help="all records of a folder, whatever code made them")
    _add_study(table)
    table.set_defaults(func=print_table, study=None)
    claims = commands.add_parser("claims", help="print which of the paper's claims hold in a study, each with its interval")
    _add_study(claims)
    _add_records(claims)
    claims.add_argument("--json", action="store_true", help="print JSON")
    claims.set_defaults(func=print_claims)
    integers = commands.add_parser("int8", help="print every int8 model beside its float model, and whether the score stays")
    _add_study(integers)
    _add_records(integers)
    integers.add_argument("--json", action="store_true", help="print JSON")
    integers.set_defaults(func=print_int8)
    why = commands.add_parser("why", help="print why a job runs again: every key, input or module that changed")
    why.add_argument("job", metavar="STAGE[/NAME]", help="a job's id: data, pretrain/ib-bert-large, ...")
    _add_study(why)
    why.set_defaults(func=print_reasons)


def _add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("--study", default=DEFAULT, help=f"a study's name or file (default {DEFAULT})")
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")


def _add_records(command: argparse.ArgumentParser) -> None:
    command.add_argument("--records", type=Path, metavar="FOLDER", help="read the records below FOLDER, made by any version")


def _open(options: argparse.Namespace, stage_name: str):
    """Return the study, its graph and its current records; add the views if the stage is one."""
    from mobilebert.data.preflight import check_results
    from mobilebert.jobs.freshness import current_records
    from mobilebert.study.graph import add_views, build_graph
    from mobilebert.study.load import load_study

    study = load_study(options.study)
    prepare_environment(getattr(options, "threads", None) or 1)
    graph = build_graph(study)
    check_results(options.results, study.name)
    found = current_records(options.results, study.name, graph)
    stage = STAGES.get(stage_name)
    if stage and stage.is_view:
        add_views(study, graph, found)
    return study, graph, found


def print_reasons(options: argparse.Namespace) -> int:
    """Print whether a job's record is current, and if not every reason."""
    from mobilebert.jobs.staleness import explain
    from mobilebert.study.graph import find_job

    stage, _, name = options.job.partition("/")
    if stage not in STAGES:
        raise UserError(f"why: unknown stage {shown(stage)}; {allowed(STAGES, stage)}")
    study, graph, _ = _open(options, stage)
    for line in explain(options.results, study.name, find_job(graph, stage, name), graph):
        print(line)
    return 0


def print_table(options: argparse.Namespace) -> int:
    """Print one table, from the current records of a study or from all records of a folder."""
    from mobilebert.jobs.freshness import edited_records
    from mobilebert.reporting.formats import PRINTERS
    from mobilebert.reporting.page import render_table
    from mobilebert.reporting.tables import fill

    if options.records:
        from mobilebert.jobs.folder import study_of

        folder = _read_folder(options.records)
        study = study_of(folder, options.records, options.study)
        tables = fill(study, folder.records, folder.edited)
    else:
        options.study = options.study or "smoke"
        study, graph, found = _open(options, options.command)
        tables = fill(study, found, edited_records(options.results, study.name, graph))
    (table,) = [table for table in tables if table.number == options.number]
    kind = options.format or ("text" if sys.stdout and sys.stdout.isatty() else "md")
    print(render_table(table, study.name) if kind == "html" else PRINTERS[kind](table, study.name), end="")
    return 0


def _read_folder(path: Path) -> RecordFolder:
    """Return the records of a folder; print a line for each file that is no record."""
    from mobilebert.jobs.folder import read_folder

    folder = read_folder(path)
    for file, problem in folder.damaged.items():
        print(f"mobilebert: {file}: {problem}; the table goes without it", file=sys.stderr)
    return folder


def print_int8(options: argparse.Namespace) -> int:
    """Print every int8 model of a study, or of the records in a folder, beside its float model."""
    from mobilebert.deployment.int8_table import as_text, rows_of, verdicts
    from mobilebert.jobs.freshness import edited_records, record_file

    if options.records:
        if options.study != DEFAULT:
            raise UserError("int8: --study and --records; one of them is allowed")
        folder = _read_folder(options.records)
        found, edited = folder.records, [options.records / key / "result.json" for key in folder.edited]
    else:
        study, graph, found = _open(options, options.command)
        keys = edited_records(options.results, study.name, graph)
        edited = [record_file(options.results, study.name, graph[key]) for key in keys]
    for path in edited:
        print(f"mobilebert: {path}: edited after it was written; the table goes without it", file=sys.stderr)
    rows = rows_of(found)
    if not rows:
        where = options.records or options.results
        raise UserError(f"{where}: no current record of the stage quantize; make one with: mobilebert quantize MODEL/TASK")
    print(json.dumps({"models": rows, "verdicts": verdicts(rows)}, indent=1) if options.json else as_text(rows))
    return 0


def print_claims(options: argparse.Namespace) -> int:
    """Print the finding on every claim of the paper."""
    from mobilebert.claims import text
    from mobilebert.claims.collect import Source, collect, sources_in
    from mobilebert.claims.judge import judge
    from mobilebert.jobs.freshness import record_file, record_folder
    from mobilebert.paper.claims import claims

    if options.records:
        if options.study != DEFAULT:
            raise UserError("claims: --study and --records; one of them is allowed")
        sources = sources_in(options.records)
    else:
        study, graph, found = _open(options, options.command)
        unread = [
            job for key, job in graph.items() if key not in found and record_file(options.results, study.name, job).exists()
        ]
        if unread:
            folder = options.results / study.name
            print(
                f"claims: {len(unread)} of {len(unread) + len(found)} records are not current, so they are not read "
                f"(why: mobilebert why {unread[0].id} --study {options.study}); --records {folder} reads all of them",
                file=sys.stderr,
            )
        sources = [Source(record, record_folder(options.results, study.name, record)) for record in found.values()]
    measured = collect(sources)
    findings = judge(claims(), measured)
    if options.json:
        facts = {"condition": text.condition(measured), "claims": [text.as_data(finding) for finding in findings]}
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print(text.plain(findings, measured))
    return 0


def report(options: argparse.Namespace) -> int:
    """Write tables and page of a study; with --records or --from-mlflow those of other records."""
    if not (options.records or options.from_mlflow):
        if options.out:
            raise UserError("report: --out is for --records and --from-mlflow; a study's page lies in its results")
        return run_stage(options)
    if options.records and options.from_mlflow:
        raise UserError("report: --records and --from-mlflow; one of them is allowed")
    prepare_environment(options.threads)
    from mobilebert.stages.report import from_mlflow, from_records

    study = None if options.study == DEFAULT else options.study
    if options.from_mlflow:
        if study:
            raise UserError("report: the run that --from-mlflow names knows its study; leave out --study")
        print(from_mlflow(options.from_mlflow.removeprefix("runs:/"), options.out or Path("report")))
    else:
        print(from_records(options.records, options.out or options.records, study))
    return 0


def track(options: argparse.Namespace) -> int:
    """Write every record to MLflow; with --live follow the running stages, with --models register
    the fine-tuned models."""
    if options.live and options.models:
        raise UserError("track: --live and --models; one of them is allowed")
    if not options.live:
        return register_models(options) if options.models else run_stage(options)
    from mobilebert.reporting.tracking import follow

    study, graph, _ = _open(options, options.command)
    print(f"following {options.results / study.name}, until no stage has run for 30 seconds", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        follow(options.results, study, graph, say=functools.partial(print, flush=True))
    return 0


def register_models(options: argparse.Namespace) -> int:
    """Write every record to MLflow, then register the fine-tuned models."""
    from mobilebert.publishing.checkpoint import checkpoints
    from mobilebert.publishing.registry import register

    code = run_stage(options)
    study, _, found = _open(options, options.command)
    chosen = [item for item in checkpoints(options.results, found) if item.record.stage == "finetune"]
    counts = register(options.results / study.name, study.name, chosen, functools.partial(print, flush=True))
    print(f"models: {json.dumps(counts)}")
    return code


def time(options: argparse.Namespace) -> int:
    """Time the models that are named, or those of the study.

    Raises UserError for options that belong to the other of the two.
    """
    if options.models or options.engine == ["list"]:
        if options.study != DEFAULT:
            raise UserError("latency: a MODEL and --study; one of them is allowed")
        prepare_environment(options.threads or 1)
        return latency.time_models(options)
    own = ("engine", "length", "batch", "rounds", "device", "benchmark_binary", "profile", "json")
    if given := [name.replace("_", "-") for name in own if getattr(options, name)]:
        raise UserError(
            f"latency: --{given[0]} needs a MODEL before it; the section latency of a study sets it for the study's models"
        )
    return run_stage(options)


def run_stage(options: argparse.Namespace) -> int:
    """Run one stage; return 1 if it is `check` and an expectation does not hold."""
    from mobilebert.data.preflight import before_work
    from mobilebert.deployment.quantized_files import AWARE
    from mobilebert.deployment.requirements import check_jobs
    from mobilebert.jobs.execute import execute_job
    from mobilebert.study.graph import find_job

    study, graph, found = _open(options, options.command)
    stage = STAGES[options.command]
    job = find_job(graph, stage.name, getattr(options, "name", ""))
    if not stage.is_view:
        before_work(study, options.results, graph, [job.id])
        check_jobs(study, options.results, graph, [job.id])
    takes_gpu = stage.gpu or AWARE in job.config.get("also", ())  # which trains
    if takes_gpu and study.device == "cuda":
        from mobilebert.jobs import gpus

        gpus.bind()  # before the program imports torch
    program = importlib.import_module(f"mobilebert.stages.{stage.name}")
    arguments = (job, study.name, options.results, graph, lambda context: program.main(context, study))
    if os.environ.get("WORLD_SIZE", "1") != "1":  # one of the processes that torchrun started
        from mobilebert.training.distributed import processes

        record = processes.execute(*arguments, study.device)
        if record is None:
            return 0
    else:
        record = execute_job(*arguments)
    if stage.name == "check":
        for line in record.details.get("lines", []):
            print(line)
        return 1 if record.metrics.get("failed") else 0
    print(_summary(record, None if stage.is_view else found.get(job.id)))
    return 0


def _summary(record: Record, before: Record | None) -> str:
    """Return what a stage prints at its end: a line, for `latency` a table before it.

    before: the current record when the command began.
    """
    from mobilebert.deployment.int8_table import failed_ways
    from mobilebert.reporting import reading
    from mobilebert.util.text import one_line

    why = reading.reason(record)
    status = f"{reading.status(record)} ({why})" if why else reading.status(record)
    if record.stage == "quantize" and (failed := failed_ways(record)):
        lacking = "; ".join(f"{way}: {reason.removeprefix(f'{way}: ')}" for way, reason in failed.items())
        status = f"{'incomplete' if status == 'ok' else status} (not quantized in {lacking})"
    when = f"already done (made {record.started})" if record == before else f"in {record.seconds:.1f} s"
    if record.stage == "latency" and "models" in record.details:
        from mobilebert.deployment import latency_text

        end = f"{record.id}: {one_line(status)}, {when}"
        return f"{latency_text.table(*latency_text.of_record(record.metrics, record.details))}\n{end}"
    figures = {key: round(value, 4) for key, value in record.metrics.items() if value is not None}
    summary = record.details.get("summary") if record.stage == "report" else None
    return one_line(f"{record.id}: {status}{', ' if record == before else ' '}{when} {summary or json.dumps(figures)}")
