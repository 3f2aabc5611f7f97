"""The command line: every stage as a program of its own, and what one asks before and after.

python -m mobilebert STAGE [NAME] --study smoke     run one stage by hand, as the workflow's rules do
mobilebert state list                               saved states of runs under way or killed
mobilebert plan --study smoke                       tokens, FLOPs and hours before anything runs
mobilebert describe mobilebert                      a model's sizes beside the paper's
mobilebert score --task cola --data D --predictions P   a file of predictions, scored as the benchmark does
mobilebert evaluate MODEL --task cola --data D      a checkpoint, scored
mobilebert predict MODEL --task cola --text "..."   a checkpoint on one's own text
mobilebert submission cola=MODEL ... --data D --out Z   a zip for the GLUE server
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import os
import sys
from pathlib import Path

from mobilebert.errors import UserError
from mobilebert.machine import cores
from mobilebert.packages import not_installed

STAGES = {
    "data": "check the tables, build the tokenizer, tokenize the corpus",
    "pretrain": "pre-train MODEL with masked LM and next-sentence prediction",
    "checkpoint": "take MODEL's weights from a published checkpoint",
    "transfer": "knowledge transfer from the teacher to MODEL (PKT, JKT)",
    "distill": "pre-training distillation of MODEL",
    "finetune": "fine-tune and score MODEL/TASK",
    "quantize": "quantize MODEL/TASK to int8 and score it again",
    "latency": "time the study's models",
    "report": "tables, figures and the page",
    "track": "write every record to MLflow",
    "check": "compare the records with what the study expects; exit 1 when it does not hold",
}
NAMED = {"pretrain", "checkpoint", "transfer", "distill", "finetune", "quantize"}

ON_GPU = {"pretrain", "transfer", "distill", "finetune"}  # the rules with a `gpu` resource
ACCUMULATING = ON_GPU - {"finetune"}  # the stages whose settings have `accumulate`


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="mobilebert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage, text in STAGES.items():
        one = commands.add_parser(stage, help=text, description=text)
        if stage in NAMED:
            one.add_argument("name", help="MODEL, or MODEL/TASK")
        _common(one)
        one.add_argument("--threads", type=_positive, default=1, help="CPU threads (default 1)")
        if stage == "track":
            one.add_argument(
                "--live",
                action="store_true",
                help="follow running stages and stream their curves, until none has run for 30 seconds",
            )
    table = commands.add_parser("table", help="print one of the paper's tables from the records")
    table.add_argument("number", type=int, choices=range(1, 10), metavar="N")
    _common(table)
    plan = commands.add_parser("plan", help="tokens, FLOPs, hours and memory of every stage, and the number of jobs")
    plan.add_argument("named", nargs="?", metavar="STUDY", help="the study, as with --study")
    plan.add_argument("--study", help="a study's name or file (default smoke)")
    plan.add_argument("--device", help="device of the estimate; cpu: this machine (default: cpu for a CPU study, else h100)")
    state = commands.add_parser("state", help="the saved states of runs under way or killed: list them, prune stale ones")
    state.add_argument("action", choices=("list", "prune"), help="prune removes states that no job of a study reads any more")
    state.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")
    describe = commands.add_parser("describe", help="a model's parameters and FLOPs beside the paper's, its kernels and memory")
    describe.add_argument("model", help="a preset, or a row of the paper's tables: mobilebert, search-a, ...")
    describe.add_argument("--seq", type=int, default=128, help="sequence length (default 128)")
    describe.add_argument("--json", action="store_true")
    _scoring(commands)
    return top


def _scoring(commands) -> None:
    """The commands for files and checkpoints from anywhere: they know no study."""
    score = commands.add_parser("score", help="the metrics of a file of predictions, in percent, as JSON")
    evaluate = commands.add_parser("evaluate", help="the metrics of a checkpoint, float or int8, as JSON")
    predict = commands.add_parser("predict", help="a checkpoint's predictions for your own text or file")
    submission = commands.add_parser("submission", help="the zip of test predictions that the GLUE server takes")
    for one in (evaluate, predict):
        one.add_argument("model", help="a folder or hub name with a fine-tuned checkpoint, or an int8 ONNX file")
    for one in (score, evaluate, predict):
        one.add_argument("--task", required=True, help="cola, sst2, ..., squad_v1.1 or squad_v2.0")
    for one in (score, evaluate, submission):
        one.add_argument("--data", required=True, help="a data folder, hub, or (not for a submission) one of its files")
    for one in (score, evaluate):
        one.add_argument("--split", help="the split (default validation; for MNLI both sets)")
    score.add_argument("--predictions", type=Path, required=True, help="JSON[.gz] for SQuAD, TSV for GLUE, or parquet")
    score.add_argument("--null-odds", type=Path, help="SQuAD v2.0: JSON of id to null odds, for the best thresholds")
    evaluate.add_argument("--predictions", type=Path, help="keep the predictions: .parquet, .jsonl, .tsv (GLUE), .json (SQuAD)")
    own = predict.add_argument_group("what to read: one of")
    own.add_argument("--text", help="the sentence, or the first of a pair")
    own.add_argument("--text-pair", help="the second of a pair")
    own.add_argument("--question", help="SQuAD's question")
    own.add_argument("--context", help="SQuAD's context")
    own.add_argument("--input", type=Path, help=".tsv, .jsonl or .parquet with the task's text columns")
    predict.add_argument("--output", type=Path, help=".parquet, .jsonl, .tsv (GLUE), .json (SQuAD); default JSON lines")
    submission.add_argument("models", nargs="+", metavar="TASK=MODEL", help="all nine; TASK=majority where there is no model")
    submission.add_argument("--out", type=Path, required=True, help="the .zip")
    for one in (evaluate, predict, submission):
        one.add_argument("--threads", type=_positive, default=cores(), help="CPU threads (default: all)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--study", default="smoke", help="a study's name or file (default smoke)")
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for an expectation that failed, 2 for what the user can mend."""
    options = parser().parse_args(arguments)
    # Importing torch and transformers makes 2 million objects that all stay: with Python's threshold of 700 the collector
    # walks them thousands of times, a quarter of the import's time.
    gc.set_threshold(100_000, 50, 50)
    try:
        if options.command == "describe":
            from mobilebert.modeling.cost import describe

            print(describe(options.model, options.seq, options.json))
            return 0
        if options.command in ("score", "evaluate", "predict", "submission"):
            return _score(options)
        if options.command == "state":
            from mobilebert import state

            for line in getattr(state, f"{options.action}_states")(options.results):
                print(line)
            return 0
        from mobilebert import config, jobs

        if options.command == "plan":
            from mobilebert.reporting.plan import plan

            if options.named and options.study:
                raise UserError(f"plan: two studies, {options.named} and --study {options.study}; one is allowed")
            study = config.load(options.study or options.named or "smoke")
            print(plan(study, jobs.build(study), options.device))
            return 0
        study = config.load(options.study)
        return _stage(options, study)
    except UserError as error:
        print(f"mobilebert: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"mobilebert: {not_installed(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if not (
            torch and (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error))
        ):  # a GPU's, a CPU's
            raise
        hint = f"; {_section(options)}.accumulate makes smaller parts of a batch" if options.command in ACCUMULATING else ""
        print(f"mobilebert: {str(error).splitlines()[0].rstrip('.')}{hint}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"mobilebert: {error}", file=sys.stderr)
        return 2


def _section(options) -> str:
    """The group of a study's keys that a training stage reads: the rows of Tables 2 and 3 are pre-trained by `search`."""
    if options.command != "pretrain":
        return options.command
    from mobilebert import paper

    return paper.models()[options.name].settings


def _environment(threads: int) -> None:
    """Before torch is imported: it reads its number of threads once."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # the bar that matters is ours
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # a head that is new at fine-tuning is no news


def _score(options) -> int:
    if options.command == "score":
        from mobilebert.evaluation.files import score

        result = score(options.task, options.data, options.predictions, options.null_odds, options.split)
        print(json.dumps(result))
        return 0
    _environment(options.threads)
    if options.command == "submission":
        from mobilebert.evaluation.submission import submit

        print(json.dumps(submit(options.models, options.data, options.out, options.threads)))
        return 0
    from mobilebert import inference

    if options.command == "evaluate":
        given = (options.model, options.task, options.data, options.split, options.predictions, options.threads)
        print(json.dumps(inference.evaluate(*given)))
    else:
        texts = {key: getattr(options, key) for key in ("text", "text_pair", "question", "context")}
        inference.predict(options.model, options.task, options.input, texts, options.output, options.threads)
    return 0


def _stage(options, study) -> int:
    from mobilebert import jobs, preflight, records

    _environment(getattr(options, "threads", 1))
    graph = jobs.build(study)
    preflight.check_results(options.results, study.name)
    found = records.current(options.results, study.name, graph)
    if options.command == "table":
        from mobilebert.reporting.tables import fill, markdown

        tables = fill(study, found, records.edited(options.results, study.name, graph))
        print(markdown([table for table in tables if table.number == options.number]), end="")
        return 0
    if options.command in ("report", "track", "check"):
        jobs.finish(study, graph, found)
    if options.command == "track" and options.live:
        from mobilebert.reporting.tracking import follow

        print(f"following {options.results / study.name}, until no stage has run for 30 seconds", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            follow(options.results, study, graph, say=functools.partial(print, flush=True))
        return 0
    job = jobs.find(graph, options.command, getattr(options, "name", ""))
    if job.stage not in records.VIEWS:
        preflight.before_work(study, options.results, graph, [job.id])
    if study.device == "cuda" and options.command in ON_GPU:
        from mobilebert import gpus

        gpus.bind()  # before the program imports torch
    program = importlib.import_module(f"mobilebert.stages.{options.command}")
    arguments = (job, study.name, options.results, graph, lambda run: program.run(run, study))
    if os.environ.get("WORLD_SIZE", "1") != "1":  # one of the processes that torchrun started
        from mobilebert.training import parallel

        record = parallel.execute(*arguments, study.device)
        if record is None:
            return 0
    else:
        record = records.execute(*arguments)
    if options.command == "check":
        for line in record.details.get("lines", []):
            print(line)
        return 1 if record.metrics.get("failed") else 0
    print(_line(record, found.get(job.id) if job.stage not in records.VIEWS else None))
    return 0


def _line(record, before) -> str:
    """Return the line that a stage prints at its end.

    before: the current record that there was when the command began.
    """
    from mobilebert.reporting import reading
    from mobilebert.reporting.text import one_line

    why = reading.reason(record)
    status = f"{reading.status(record)} ({why})" if why else reading.status(record)
    when = f"already done (made {record.started})" if record == before else f"in {record.seconds:.1f} s"
    facts = {key: round(value, 4) for key, value in record.metrics.items() if value is not None}
    summary = record.details.get("summary") if record.stage == "report" else None
    return one_line(f"{record.id}: {status}{', ' if record == before else ' '}{when} {summary or json.dumps(facts)}")


if __name__ == "__main__":
    sys.exit(main())
