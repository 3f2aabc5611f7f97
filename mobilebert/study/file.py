"""Read a study's file as plain values.

Its size, depth and numbers are bounded, so any file is read or refused within a second.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from mobilebert.util.errors import UserError, shown

LARGEST_FILE = 64 * 1024  # bytes; the largest study of this repository has 7,200
MOST_VALUES = 20_000  # the values behind an alias count again at each use
DEEPEST = 20  # a study's keys are at most 5 deep
LARGEST_INTEGER = 2**53  # a float holds every integer up to here


class _Loader(yaml.SafeLoader):
    """A YAML 1.1 loader with four changes.

    `1e-4` is a number: YAML 1.1 reads it as text, but people write learning rates this way.
    An integer is decimal or 0x...: YAML 1.1 reads 1:30 as 90 and 010 as 8.
    A date is text, because no key of a study is a date.
    A key given twice is an error.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}  # id of a node -> number of values in it, aliases expanded

    def compose_node(self, parent, index):
        """Return the next node.

        Raises ComposerError if it lies deeper than DEEPEST, is an alias inside its own anchor, or
        brings the file above MOST_VALUES.
        """
        event: Any = self.peek_event()
        is_alias, before = isinstance(event, yaml.AliasEvent), self.values
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, f"more than {DEEPEST} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.sizes:
            raise ComposerError(None, None, f"alias {event.anchor[:40]!r} lies inside itself", event.start_mark)
        self.values += self.sizes[id(node)] if is_alias else 1
        if self.values > MOST_VALUES:
            raise ComposerError(None, None, f"more than {MOST_VALUES:,} values", event.start_mark)
        self.sizes.setdefault(id(node), self.values - before)
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # the value does not fit its tag
            kind = node.tag.rpartition(":")[2]
            problem = f"{shown(node.value)} is no value of the type {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node, deep=False):
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        most = max(counts, key=counts.__getitem__, default="")
        if counts[most] > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {most}", node.start_mark)
        return super().construct_mapping(node, deep)


OTHERS = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float")}  # replaced below; timestamps are dropped
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in pairs if tag not in OTHERS]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9]\d*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\d+[eE][-+]?\d+$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read(file: Path) -> dict:
    """Return the mapping in a study's file. Raises UserError if the file does not hold one."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: a study is a regular file, but this is a folder, pipe or device")
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{file}: more than the {LARGEST_FILE:,} bytes that a study may have")
        values = yaml.load(content.decode(), _Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: cannot be read: not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark, text = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{file}: not YAML: {line}{' '.join(text.split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a mapping of keys is allowed, not {type(values).__name__}")
    _check_scalars(file, values, "")
    return values


def _check_scalars(file: Path, value, where: str) -> None:
    """Raise UserError, with the key, for integers beyond 2**53 and text not valid in UTF-8."""
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{where}.{key}" if where else str(key)
            _check_scalars(file, key, place)
            _check_scalars(file, item, place)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_scalars(file, item, f"{where}.{place}")
    elif isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # half a surrogate pair: "\ud800" in quotes
        raise UserError(f"{file}: {shown(where)}: {shown(value)} cannot be encoded as UTF-8")
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UserError(f"{file}: {where[:60]}: integers from -2**53 to 2**53 are allowed")
