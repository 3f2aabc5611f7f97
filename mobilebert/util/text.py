"""Make texts of a study and of records safe to print: on one line, cut, or in Markdown."""

from __future__ import annotations

import re

_SIGNS = re.compile(r"([\\`*_<>\[\]|~&$])")

_BLOCK = re.compile(r"^([#+=-]|\d+(?=[.)]))")  # at the start of a line: a heading, list or rule


def one_line(text: str) -> str:
    """Return the text as one line without control characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())


def cut(text: str, most: int) -> str:
    """Return the text as one line of at most `most` characters."""
    text = one_line(text)
    return text if len(text) <= most else f"{text[: most - 4].rstrip()} ..."


def markdown(text: str) -> str:
    """Return Markdown that shows the text as it is, on one line, with all markup escaped."""
    text = _SIGNS.sub(r"\\\1", one_line(text))
    return _BLOCK.sub(lambda match: rf"\{match[0]}" if not match[0].isdigit() else f"{match[0]}\\", text)
