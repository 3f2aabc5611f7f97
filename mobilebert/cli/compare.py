"""Compare runs, judge one against a baseline, make a baseline, and run fresh seeds."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from mobilebert.cli.options import positive
from mobilebert.util.errors import UserError
from mobilebert.util.machine import cores


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add compare, baseline and seeds."""
    compare = commands.add_parser("compare", help="print what differs between runs, and every metric; --gate judges it")
    side = "a folder of results or of committed records, a baseline, a file of `make bench`, or runs:/<id> of MLflow"
    compare.add_argument("base", metavar="BASE", help=f"{side}; paper: the published tables")
    compare.add_argument("new", metavar="NEW", nargs="+", help="the same; several that differ in seeds alone are one side")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page too")
    compare.add_argument("--log", action="store_true", help="write it to MLflow too: MLFLOW_TRACKING_URI, or mlflow.db of NEW")
    compare.add_argument("--gate", action="store_true", help="judge the metrics of the baseline BASE: exit 0, 1 or 2")
    compare.add_argument("--junit", type=Path, metavar="FILE", help="write the gate's verdicts as JUnit's XML too")
    compare.set_defaults(func=print_comparison)
    baseline = commands.add_parser("baseline", help="freeze a study's seeds as the reference of `compare --gate`")
    baseline.add_argument("out", type=Path, metavar="OUT.json")
    baseline.add_argument("--seeds", type=seed_range, metavar="FIRST-LAST", help="default: all that `mobilebert seeds` ran")
    baseline.add_argument("--accept", metavar="REASON", help="replace OUT.json, and keep the reason in its history")
    baseline.set_defaults(func=freeze)
    seeds = commands.add_parser("seeds", help="run a study with other seeds, each in results/<study>-seed<N>")
    seeds.add_argument("seeds", type=seed_range, metavar="FIRST-LAST", help="as 1-20, or one seed")
    seeds.add_argument("--cores", type=positive, default=cores(), help="cores of snakemake (default: all)")
    seeds.set_defaults(func=run_seeds)
    for one in (baseline, seeds):
        one.add_argument("--study", default="smoke", help="a study's name or file (default smoke)")
        one.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")


def seed_range(text: str) -> range:
    """Return the seeds of "1-20" or "7", for argparse. Raises ArgumentTypeError for other text."""
    match = re.fullmatch(r"(\d{1,8})(?:-(\d{1,8}))?", text)
    found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not found or len(found) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of at most 1000 seeds, as 1-20")
    return found


def print_comparison(options: argparse.Namespace) -> int:
    """Print a comparison. With --gate return 0 if all holds, 1 if not, 2 if nothing compares."""
    if options.junit and not options.gate:
        raise UserError("compare: --junit writes the gate's verdicts; add --gate")
    if options.base == "paper":
        return _compare_with_paper(options)
    from mobilebert.compare import ci, html, text
    from mobilebert.compare.comparison import compare
    from mobilebert.compare.gate import exit_code
    from mobilebert.compare.open import open_base, open_new
    from mobilebert.util.files import json_safe, write_atomically

    base, baseline = open_base(options.base)
    if options.gate and (baseline is None or not baseline.gate.metrics):
        raise UserError(f"{options.base}: --gate needs a baseline with gated metrics; make one: mobilebert baseline OUT.json")
    if options.gate and (files := [name for name in options.new if Path(name).is_file()]):
        raise UserError(f"{files[0]}: --gate judges runs; name folders of results, as results/smoke, not a file")
    new = open_new(options.new, options.base)
    report = compare(base, new, baseline if options.gate else None)
    if options.html:
        write_atomically(options.html.resolve(), html.page(report).encode(errors="replace"))
    if report.gate and options.junit:
        write_atomically(options.junit.resolve(), ci.junit(report.gate, f"gate of {options.base}"))
    if report.gate and (path := os.environ.get("GITHUB_STEP_SUMMARY")):
        try:
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.write(ci.summary(report.gate, f"Gate of {options.base}"))
        except OSError as error:  # the verdicts, printed below, must not be lost for it
            print(f"mobilebert: $GITHUB_STEP_SUMMARY: {path}: cannot be written ({error.strerror})", file=sys.stderr)
    if options.log:
        from mobilebert.compare.log import log_comparison

        for line in log_comparison(report, new, options.new):
            print(f"mobilebert: {line}", file=sys.stderr)
    # The files come first: a reader that closes the pipe early, as `head`, must not cost them.
    print(json.dumps(json_safe(report.as_json())) if options.json else text.text(report))
    return exit_code(report.gate) if report.gate else 0


def _compare_with_paper(options: argparse.Namespace) -> int:
    """Print each measured cell beside the published one, with what deviates."""
    if options.gate or options.html or options.log or len(options.new) > 1:
        raise UserError("compare: paper takes one folder of records, without --gate, --html and --log")
    from mobilebert.compare import paper
    from mobilebert.compare.open import open_folder
    from mobilebert.jobs.folder import study_of
    from mobilebert.util.files import json_safe

    found = open_folder(options.new[0])
    rows = paper.paper_rows(study_of(found, Path(options.new[0])), found)
    print(json.dumps(json_safe(paper.as_json(rows))) if options.json else paper.text(rows))
    return 0


def freeze(options: argparse.Namespace) -> int:
    """Write a baseline from the seeds of a study."""
    from mobilebert.compare.freeze import freeze_study

    for line in freeze_study(options.out, options.study, options.results, options.seeds, options.accept):
        print(line)
    return 0


def run_seeds(options: argparse.Namespace) -> int:
    """Run a study once for each seed; return the code of the first run that failed, else 0."""
    from mobilebert.compare.seeds import run

    return run(options.study, options.results, options.seeds, options.cores)
