"""Check options that several commands have, and set what libraries read at import."""

from __future__ import annotations

import argparse
import logging
import os
import sys


class StderrHandler(logging.Handler):
    """Print what the package logs as one line of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record to the standard error of this moment."""
        print(f"mobilebert: {record.getMessage()}", file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Print the package's warnings, once however often a program calls this."""
    logger = logging.getLogger("mobilebert")
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())


def positive(text: str) -> int:
    """Return a positive integer, for argparse. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def prepare_environment(threads: int) -> None:
    """Set the number of threads and silence progress bars; torch reads both once, at import."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # we show our own progress bar
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # fine-tuning always begins with a new head
