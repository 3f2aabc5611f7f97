"""List every key that a study may have; `python -m mobilebert.study.keys` prints docs/study.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from mobilebert.study.fields import TASK_NAMES
from mobilebert.study.schema import Study

WIDTH = 100  # columns of the list in a terminal
KINDS = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most"}  # in pydantic's words
TABLE = "| key | type | default | description |\n|---|---|---|---|"

HEAD = f"""\
<!-- Written by `python -m mobilebert.study.keys > docs/study.md`; do not edit. -->

# The keys of a study

A study is a YAML file that says what to train, on which data and at which scale. Its defaults are
the paper's recipe, so a file lists only its differences. Only `description` is required:

```yaml
schema: 1
description: the paper with one fine-tuning setting a task
finetune: {{search: none}}
```

`mobilebert plan STUDY` checks a study, given as a file or as a name in `workflows/config`, and
prints what each of its stages costs. A wrong study is one line that names the file, the key and what
is allowed. `mobilebert plan --keys` prints the list below.

In a key, `<name>` is a name in a mapping and `<number>` an item of a list, from 0. Models are named
as in `mobilebert/paper/models.yaml`. Tasks are {", ".join(TASK_NAMES[:9])},
{" and ".join(TASK_NAMES[9:])}. Sections and tables are those of the paper (arXiv 2004.02984).
"""


@dataclass(frozen=True)
class Key:
    """One key of a study.

    name: with dots, as errors print it.
    kind: its type and bounds in words.
    default: as YAML on one line; None if the key is required.
    """

    name: str
    kind: str
    default: str | None
    description: str


def keys(model: type[BaseModel] = Study, prefix: str = "") -> Iterator[Key]:
    """Yield every key of the model, a group before the keys inside it."""
    for field_name, field in model.model_fields.items():
        name = prefix + (field.alias or field_name)
        default = None if field.is_required() else as_yaml(field.default)
        yield Key(name, kind_of(field.annotation, field.metadata), default, field.description or "")
        places: dict[object, str] = {dict: ".<name>.", tuple: ".<number>."}
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, name + places.get(get_origin(field.annotation), "."))


def sections() -> list[tuple[Key, list[Key]]]:
    """Return (key of the section, keys in it) of every section; keys in no section come first."""
    found: dict[str, tuple[Key, list[Key]]] = {"": (Key("top level", "", None, "Keys in no section."), [])}
    for key in keys():
        section, dot, _ = key.name.partition(".")
        if "group" in key.kind and not dot:
            found[section] = (key, [])
        else:
            found[section if dot else ""][1].append(key)
    return list(found.values())


def kind_of(annotation, bounds=()) -> str:
    """Return a type and its bounds in words, such as "integer of at least 1 or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(inner[0], [bound for field in inner[1:] for bound in field.metadata])
    if origin in (Literal, Union, UnionType):
        words = [str(one) if origin is Literal else kind_of(one) for one in inner]
        last = ", or " if any(" and " in word for word in words) else " or "
        return last.join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]
    if origin in (tuple, dict):
        held = re.sub(r"^(integer|number|text|group)", r"\1s", kind_of(inner[1 if origin is dict else 0]))
        count = f"{len(inner)} " if origin is tuple and inner[-1] is not Ellipsis else ""
        return f"mapping of names to {held}" if origin is dict else f"list of {count}{held}"
    return "group of keys" if issubclass(annotation, BaseModel) else KINDS[annotation] + _range(annotation, bounds)


def _range(kind: type, bounds) -> str:
    """Return the bounds in words, with a space before them; nothing if there are none."""
    limits = {name: getattr(bound, name) for bound in bounds for name in BOUNDS if hasattr(bound, name)}
    if kind is int and "gt" in limits:
        limits = {"ge": limits.pop("gt") + 1, **limits}
    if kind is int and "lt" in limits:
        limits["le"] = limits.pop("lt") - 1
    if limits.keys() == {"ge", "le"}:
        return f" from {limits['ge']:,} to {limits['le']:,}"
    return " and".join(f" {BOUNDS[name]} {limit:,}" for name, limit in limits.items())


def as_yaml(value) -> str:
    """Return a default as YAML on one line."""
    plain = to_jsonable_python(value, exclude_none=True)
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


def text() -> str:
    """Return every key with its type, default and description, for a terminal."""
    wrap = partial(textwrap.wrap, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = []
    for section, found in sections():
        lines += [section.name, *wrap(section.description, initial_indent="  ", subsequent_indent="  "), ""]
        for key in found:
            default = "required" if key.default is None else f"default {key.default}"
            lines += wrap(f"{key.name}: {key.kind}; {default}", initial_indent="  ", subsequent_indent=" " * 6)
            lines += wrap(key.description, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def markdown() -> str:
    """Return docs/study.md: what a study is, and a table of the keys of every section."""
    lines = [HEAD]
    for section, found in sections():
        lines += [f"## {section.name}", "", section.description, "", TABLE]
        for key in found:
            default = "required" if key.default is None else f"`{key.default}`"
            lines.append(f"| `{key.name}` | {key.kind} | {default} | {key.description} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
