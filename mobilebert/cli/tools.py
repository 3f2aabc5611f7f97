"""Run the commands other than stages: on a study, on a model, and on files of predictions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mobilebert.cli.options import positive, prepare_environment
from mobilebert.util.errors import UserError
from mobilebert.util.machine import cores


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands on a study or a model, and those that score any file or checkpoint."""
    plan = commands.add_parser("plan", help="print tokens, FLOPs, hours and memory of every stage, and the number of jobs")
    plan.add_argument("named", nargs="?", metavar="STUDY", help="the study, as with --study")
    plan.add_argument("--study", help="a study's name or file (default smoke)")
    plan.add_argument("--device", help="device of the estimate; cpu: this machine (default: cpu for a CPU study, else h100)")
    plan.add_argument("--keys", action="store_true", help="print every key that a study may have: type, default, description")
    plan.set_defaults(func=print_plan)
    state = commands.add_parser("state", help="list or prune the saved states of running and killed trainings")
    state.add_argument("action", choices=("list", "prune"), help="prune removes states that no job of a study reads any more")
    state.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")
    state.set_defaults(func=list_or_prune)
    bundle = commands.add_parser("bundle", help="write a study's finished records, models and saved states into one file")
    bundle.add_argument("study", metavar="STUDY", help="a study's name or file")
    bundle.add_argument("out", type=Path, metavar="OUT.tar", help="the file to write")
    bundle.set_defaults(func=write_bundle)
    unpack = commands.add_parser("import", help="put a bundle's jobs into the folder of results; what is there stays")
    unpack.add_argument("bundle", type=Path, metavar="BUNDLE.tar", help="a file that `mobilebert bundle` wrote")
    unpack.set_defaults(func=import_bundle)
    for one in (bundle, unpack):
        one.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")
    describe = commands.add_parser("describe", help="print a model's parameters and FLOPs beside the paper's, kernels and memory")
    describe.add_argument("model", help="a preset, or a row of the paper's tables: mobilebert, search-a, ...")
    describe.add_argument("--seq", type=int, default=128, help="sequence length (default 128)")
    describe.add_argument("--json", action="store_true", help="print JSON")
    describe.set_defaults(func=print_description)
    convert = commands.add_parser(
        "convert", help="write a TensorFlow checkpoint, or a pickle, as the folder that our classes read"
    )
    convert.add_argument(
        "source", metavar="SOURCE", help="tf_model.h5, TensorFlow's NAME.ckpt, pytorch_model.bin, or a folder with one"
    )
    convert.add_argument("out", type=Path, metavar="OUT", help="the new folder: config.json and model.safetensors")
    configuration = convert.add_mutually_exclusive_group()
    configuration.add_argument(
        "--preset", help="the model, if no configuration is beside the weights: mobilebert, ib-bert-large, ..."
    )
    configuration.add_argument(
        "--config", type=Path, metavar="FILE", help="a JSON file, transformers' or Google's; or the model garden's params.yaml"
    )
    convert.set_defaults(func=convert_checkpoint)
    _add_scoring(commands)


def _add_scoring(commands) -> None:
    """Add the commands for any files and checkpoints; they need no study."""
    score = commands.add_parser("score", help="print the metrics of a file of predictions, in percent, as JSON")
    evaluate = commands.add_parser("evaluate", help="print the metrics of a checkpoint, float or int8, as JSON")
    predict = commands.add_parser("predict", help="print a checkpoint's predictions for your own text or file")
    submission = commands.add_parser("submission", help="write the zip of test predictions that the GLUE server takes")
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
    score.set_defaults(func=print_score)
    evaluate.add_argument("--predictions", type=Path, help="keep the predictions: .parquet, .jsonl, .tsv (GLUE), .json (SQuAD)")
    evaluate.set_defaults(func=print_evaluation)
    own = predict.add_argument_group("what to read: one of")
    own.add_argument("--text", help="the sentence, or the first of a pair")
    own.add_argument("--text-pair", help="the second of a pair")
    own.add_argument("--question", help="SQuAD's question")
    own.add_argument("--context", help="SQuAD's context")
    own.add_argument("--input", type=Path, help=".tsv, .jsonl or .parquet with the task's text columns")
    predict.add_argument("--output", type=Path, help=".parquet, .jsonl, .tsv (GLUE), .json (SQuAD); default JSON lines")
    predict.set_defaults(func=print_predictions)
    submission.add_argument("models", nargs="+", metavar="TASK=MODEL", help="all nine; TASK=majority if there is no model")
    submission.add_argument("--out", type=Path, required=True, help="the .zip")
    submission.set_defaults(func=write_submission)
    for one in (evaluate, predict, submission):
        one.add_argument("--threads", type=positive, default=cores(), help="CPU threads (default: all)")


def print_plan(options: argparse.Namespace) -> int:
    """Print the cost of every job of a study, or with --keys the keys that a study may have.

    Raises UserError if two studies are given, or --keys together with a study or --device.
    """
    if options.keys:
        return print_keys(options)
    from mobilebert.reporting.plan import plan
    from mobilebert.study.graph import build_graph
    from mobilebert.study.load import load_study

    if options.named and options.study:
        raise UserError(f"plan: two studies, {options.named} and --study {options.study}; one is allowed")
    study = load_study(options.study or options.named or "smoke")
    print(plan(study, build_graph(study), options.device))
    return 0


def print_keys(options: argparse.Namespace) -> int:
    """Print every key of a study: its type, default and description."""
    from mobilebert.study import keys

    if options.named or options.study or options.device:
        raise UserError("plan: --keys prints the keys of any study; leave out the study and --device")
    print(keys.text(), end="")
    return 0


def list_or_prune(options: argparse.Namespace) -> int:
    """Print a line for every saved state; `prune` removes those that no job reads any more."""
    from mobilebert.jobs import saved_state

    lines = {"list": saved_state.list_states, "prune": saved_state.prune_states}[options.action]
    for line in lines(options.results):
        print(line)
    return 0


def write_bundle(options: argparse.Namespace) -> int:
    """Write a study's bundle and print what it holds."""
    from mobilebert.jobs import bundle
    from mobilebert.study.load import load_study

    print(bundle.write_bundle(options.results, load_study(options.study).name, options.out))
    return 0


def import_bundle(options: argparse.Namespace) -> int:
    """Put a bundle's jobs into the folder of results and print what came."""
    from mobilebert.jobs import bundle

    print(bundle.read_bundle(options.bundle, options.results))
    return 0


def print_description(options: argparse.Namespace) -> int:
    """Print a model's parameters, FLOPs, kernels and memory."""
    from mobilebert.modeling.cost import describe

    print(describe(options.model, options.seq, options.json))
    return 0


def convert_checkpoint(options: argparse.Namespace) -> int:
    """Convert a checkpoint and print what was done."""
    from mobilebert.modeling.foreign.convert import convert

    for line in convert(options.source, options.out, options.preset, options.config):
        print(line)
    return 0


def print_score(options: argparse.Namespace) -> int:
    """Print the metrics of a file of predictions."""
    from mobilebert.evaluation.prediction_files import score

    print(json.dumps(score(options.task, options.data, options.predictions, options.null_odds, options.split)))
    return 0


def print_evaluation(options: argparse.Namespace) -> int:
    """Print the metrics of a checkpoint."""
    prepare_environment(options.threads)
    from mobilebert.evaluation.predict import evaluate_checkpoint

    given = (options.model, options.task, options.data, options.split, options.predictions, options.threads)
    print(json.dumps(evaluate_checkpoint(*given)))
    return 0


def print_predictions(options: argparse.Namespace) -> int:
    """Print or write a checkpoint's predictions."""
    prepare_environment(options.threads)
    from mobilebert.evaluation.predict import predict_rows

    texts = {key: getattr(options, key) for key in ("text", "text_pair", "question", "context")}
    predict_rows(options.model, options.task, options.input, texts, options.output, options.threads)
    return 0


def write_submission(options: argparse.Namespace) -> int:
    """Write the zip for the GLUE server and print what is in it."""
    prepare_environment(options.threads)
    from mobilebert.evaluation.submission import submit

    print(json.dumps(submit(options.models, options.data, options.out, options.threads)))
    return 0
