"""Define Snakemake's logger plug-in `mobilebert`: a progress bar over the jobs of a run.

Snakemake looks for a package of this name on its module path. `make reproduce` puts this folder
there; `PYTHONPATH=workflows/plugins snakemake --cores 2 --logger mobilebert` does the same.
"""

from __future__ import annotations

import logging
import sys
import threading

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from mobilebert.util.job_bar import JobBar

TARGET = "all"  # the rule of the default target; it runs nothing
SHOWN = "Nothing to be done"  # the one message below a warning that is shown
REPEATED = (  # what a failed job's own lines say already
    "RuleException:\nCalledProcessError",
    "Exiting because a job execution failed",
    "--keep-incomplete mode is set",
    "WorkflowError:\nAt least one job did not complete successfully",
)


class LogHandler(LogHandlerBase):
    """Show a run's jobs as a bar, its errors and warnings in full. A dry run looks as without it."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self):
        self.stream = sys.stdout if self.common_settings.stdout else sys.stderr
        self.counts: dict[str, int] = {}
        self.bar: JobBar | None = None
        self.ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Show what a record of Snakemake's log says."""
        try:
            if self.common_settings.dryrun:
                self._say(self.format(record))
            else:
                self._show(record, vars(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Take the bar away at the end of the run, and print how many jobs ended."""
        self.ended.set()
        self.acquire()
        try:
            if self.bar:
                self.bar.close()
                self.bar = None
        finally:
            self.release()
        super().close()

    def _show(self, record: logging.LogRecord, fields: dict) -> None:
        event = fields.get("event")
        if event == LogEvent.RUN_INFO:
            self.counts = {rule: count for rule, count in fields["stats"].items() if rule not in (TARGET, "total")}
        elif event == LogEvent.JOB_INFO and fields["rule_name"] != TARGET:
            name = "/".join((fields["rule_name"], *fields["wildcards"].values()))
            self._bar().begin(fields["jobid"], fields["rule_name"], name)
        elif event == LogEvent.JOB_FINISHED:
            self._bar().end(fields["job_id"])
        elif event == LogEvent.JOB_ERROR:
            self._bar().fail(fields["jobid"], fields["rule_name"], fields["log"])
        elif event in (None, LogEvent.ERROR):
            text = self.format(record)
            if text.startswith(SHOWN) or (record.levelno >= logging.WARNING and not text.startswith(REPEATED)):
                self._say(text)

    def _bar(self) -> JobBar:
        """Return the bar. It starts with the first job: a run that is refused before shows none."""
        if self.bar is None:
            self.bar = JobBar(self.counts, self.stream)
            if self.bar.is_terminal:
                threading.Thread(target=self._tick, daemon=True).start()
        return self.bar

    def _tick(self) -> None:
        """Draw the bar each second: its clock goes on while no job starts or ends."""
        while not self.ended.wait(1):
            self.acquire()
            try:
                if self.bar:
                    self.bar.refresh()
            finally:
                self.release()

    def _say(self, text: str) -> None:
        if text and text != "None":  # Snakemake's word for a record without a message
            self.bar.say(text) if self.bar else print(text, file=self.stream, flush=True)
