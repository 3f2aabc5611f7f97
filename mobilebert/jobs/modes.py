"""List Snakemake's modes that run nothing, and those that cannot do what their name says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mobilebert.util.errors import UserError

# These modes show the study. In them every job keeps its inputs, even if it is up to date.
VIEWING = {
    *("--d3dag", "--dag", "--filegraph", "--rulegraph", "--report", "--archive", "--list-changes"),
    *("--summary", "-S", "--detailed-summary", "-D", "--generate-unit-tests"),
}
NOTES = {
    "--list-changes": "it compares with Snakemake's own notes, which decide nothing here; `snakemake -n` says what changed",
    "--rerun-triggers": "fingerprints decide what runs again, so code, input, params and software-env are no triggers",
}


def is_viewing(words: Sequence[str]) -> bool:
    """Return whether the words of a Snakemake command only look at the study."""
    return not VIEWING.isdisjoint(_options(words))


def notes(words: Sequence[str]) -> list[str]:
    """Return a line for each option that does not do what its name says."""
    return [f"{option}: {NOTES[option]}" for option in _options(words) if option in NOTES]


def check(words: Sequence[str], outputs: Iterable[Path]) -> None:
    """Raise UserError if the command copies a finished study's files and one of them is missing."""
    if "--generate-unit-tests" not in _options(words):
        return
    if lost := next((path for path in outputs if not path.exists()), None):
        raise UserError(f"--generate-unit-tests copies the files of a finished study, but {lost} does not exist")


def _options(words: Sequence[str]) -> list[str]:
    return [word.partition("=")[0] for word in words]
