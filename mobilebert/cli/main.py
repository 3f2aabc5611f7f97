"""Run one command of the suite.

python -m mobilebert STAGE [NAME] --study smoke   run one stage by hand, as the workflow's rules do
mobilebert state list                             list the saved states of running and killed jobs
mobilebert plan --study smoke                     print tokens, FLOPs and hours before anything runs
mobilebert describe mobilebert                    print a model's sizes beside the paper's
mobilebert convert SOURCE OUT                     make TensorFlow weights a folder of ours
mobilebert why data --study smoke                 print why a job runs again
mobilebert table 8 --study smoke                  print one of the paper's tables from the records
mobilebert compare results/a results/b            print what differs between two runs
mobilebert seeds 0-19 --study smoke               run a study with other seeds
mobilebert baseline OUT.json --study smoke        freeze them as the reference of `compare --gate`
mobilebert claims --study smoke                   print which of the paper's claims hold
mobilebert report --records FOLDER                write tables and page from committed records
mobilebert bundle smoke smoke.tar                 carry a study to another machine, with `import`
mobilebert publish --study smoke                  print what a push to the hub would upload
mobilebert latency MODEL... --engine E ...         time models side by side
mobilebert int8 --study smoke                     print every int8 model beside its float model
mobilebert score --task cola --data D --predictions P   score predictions as the benchmark does
mobilebert evaluate MODEL --task cola --data D    score a checkpoint
mobilebert predict MODEL --task cola --text "..." run a checkpoint on your own text
mobilebert submission cola=MODEL ... --data D --out Z   write a zip for the GLUE server
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import signal
import sys

from mobilebert.cli import compare, publish, stages, tools
from mobilebert.cli.options import log_to_stderr
from mobilebert.study.stages import STAGES
from mobilebert.util.errors import UserError
from mobilebert.util.packages import not_installed


def parser() -> argparse.ArgumentParser:
    """Return the parser. Each command sets `func`, which takes options and returns an exit code."""
    top = argparse.ArgumentParser(prog="mobilebert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    stages.add_commands(commands)
    tools.add_commands(commands)
    compare.add_commands(commands)
    publish.add_commands(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: an expectation does not hold. 2: an error that the user can fix, in one line. 141:
    the reader of the output has left.
    """
    options = parser().parse_args(arguments)
    log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding shows ± as ?
    # Importing torch and transformers creates 2 million objects that all stay. With Python's
    # threshold of 700 the collector walks them thousands of times: a quarter of the import's time.
    gc.set_threshold(100_000, 50, 50)
    try:
        code = options.func(options)
        if sys.stdout:
            sys.stdout.flush()  # here, because Python's own flush at the exit fails in two lines
        return code
    except UserError as error:
        return _refuse(error)
    except ModuleNotFoundError as error:
        return _refuse(not_installed(error))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        return _refuse(f"{str(error).splitlines()[0].rstrip('.')}{_memory_hint(options)}")
    except MemoryError:
        return _refuse("out of memory")
    except BrokenPipeError:
        _forget_output()
        return 128 + signal.SIGPIPE  # as a shell shows a program that its reader left
    except OSError as error:  # a full disk, a folder that cannot be written
        _forget_output()
        return _refuse(error)


def _refuse(error: object) -> int:
    print(f"mobilebert: {error}", file=sys.stderr)
    return 2


def _forget_output() -> None:
    """Send what stdout still holds to nowhere if it cannot be written: Python would try again."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a GPU's or a CPU's memory was too small."""
    torch = sys.modules.get("torch")
    return bool(torch and (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)))


def _memory_hint(options: argparse.Namespace) -> str:
    """Return the setting that lets a training need less memory; "" for other commands."""
    stage = STAGES.get(options.command)
    if not (stage and stage.distributed):
        return ""
    section = options.command
    if section == "pretrain":
        from mobilebert import paper
        from mobilebert.study.pretraining_seeds import row_of

        section = paper.models()[row_of(options.name)].settings  # Tables 2 and 3 are pre-trained by `search`
    return f"; {section}.accumulate makes smaller parts of a batch"
