"""Rewrite what Snakemake logs of a job: why it runs, in our words, and short lists of files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from mobilebert.util.text import cut

LINE = 200  # characters of a list of files, and of a reason


class LogFilter(logging.Filter):
    """A filter of Snakemake's logger. It lets every record pass, and shortens those of jobs.

    because: returns why the job of a rule and its wildcards runs; "" keeps Snakemake's words.
    """

    def __init__(self, because: Callable[[str, Mapping[str, str]], str]):
        super().__init__()
        self.because = because

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record of a job in place; return True."""
        fields = vars(record)
        for name in {"input", "output"} & fields.keys():
            fields[name] = shorten(fields[name])
        if "reason" in fields:
            reason = self.because(fields["rule_name"], fields["wildcards"]) or fields["reason"]
            fields["reason"] = cut(reason, LINE)
        return True


def rewrite(logger: logging.Logger, because: Callable[[str, Mapping[str, str]], str]) -> None:
    """Give Snakemake's logger a LogFilter. It replaces that of an earlier workflow."""
    for old in [one for one in logger.filters if isinstance(one, LogFilter)]:
        logger.removeFilter(old)
    logger.addFilter(LogFilter(because))


def shorten(files: list[str]) -> list[str]:
    """Return the first files, at least one, that fit in a line, and how many are left out."""
    width, shown = 0, []
    for file in files:
        width += len(file) + 2
        if shown and width > LINE:
            return [*shown, f"and {len(files) - len(shown)} more"]
        shown.append(file)
    return shown
