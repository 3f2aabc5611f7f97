"""Define the error that ends a command in one line, and the one that ends a training."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class Diverged(Exception):
    """Training met a loss that is not finite."""


LONGEST = 600  # characters of an error's line
MOST, WIDEST = 12, 120  # the most names that an error lists, and the most characters of their list


class UserError(Exception):
    """An error in one line: file, key and what is allowed. The command prints it and exits with 2.

    A character that does not print is shown as its escape. A line of more than `LONGEST` characters
    is cut in the middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
        half = LONGEST // 2
        return line if len(line) <= LONGEST else f"{line[: half - 3]} ... {line[2 - half :]}"


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Put `source` before the text of a UserError in this block, unless the text names it."""
    try:
        yield
    except UserError as error:
        raise error if str(source) in str(error) else UserError(f"{source}: {error}") from None


def shown(value: object) -> str:
    """Return a value as an error quotes it: the start of its `repr`, or a collection's size."""
    if isinstance(value, list | tuple | dict | set) and value:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:100] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def allowed(names: Iterable[str], given: object = None) -> str:
    """Return "allowed: a, b, c"; if there are many names, those most like `given`."""
    names = list(names)
    if len(names) <= MOST and len(", ".join(names)) <= WIDEST:
        return f"allowed: {', '.join(names)}"
    near = difflib.get_close_matches(str(given)[:100], names, n=MOST, cutoff=0) if given else names[:MOST]
    while len(near) > 1 and len(", ".join(near)) > WIDEST:
        near.pop()
    return f"allowed: {', '.join(near)}, ... ({len(names)} in all)"


def one_line(error: BaseException) -> str:
    """Return the type and the message of an error on one line, cut to 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def shown_key(key: object) -> str:
    """Return a row's key for an error: the start of its `repr` if it is long or does not print."""
    text = str(key)
    return text if text.isprintable() and len(text) <= 80 else f"{text!r:.80}"
