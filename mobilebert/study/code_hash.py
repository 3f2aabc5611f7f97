"""Hash the code of a stage: the comment-free syntax of every module that it uses."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# Modules that pass results on unchanged; the configuration they resolve is in the fingerprint.
CARRIERS = frozenset(
    f"mobilebert{name}"
    for name in (
        *("", ".paper"),
        *(".util", ".util.errors", ".util.files", ".util.progress"),
        *(".study", ".study.architecture", ".study.code_hash", ".study.graph", ".study.job", ".study.load"),
        *(".study.fields", ".study.finetune", ".study.recipe", ".study.schema"),
        *(".study.sections", ".study.stage_config", ".study.stages"),
        *(".jobs", ".jobs.context", ".jobs.execute", ".jobs.freshness", ".jobs.locks", ".jobs.record"),
    )
)


# Modules that change no result of a training: checks before it, and the FLOPs behind its speed.
# The report prints these FLOPs, so they are in its hash.
BOOKKEEPING = frozenset(f"mobilebert.{name}" for name in ("data.preflight", "util.machine", "modeling.cost", "study.budget"))


def canonical(value: object) -> str:
    """Return the value as JSON with sorted keys, no spaces and ASCII only; ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: object) -> str:
    """Return the sha256 of the value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


# --- the code without its comments


def _syntax(node) -> object:
    """Return a syntax tree as nested lists, without positions, docstrings and empty fields.

    Empty fields are left out because Python versions differ in which they add (3.12: type_params).
    """
    if isinstance(node, ast.AST):
        fields = []
        for key, value in ast.iter_fields(node):
            if key == "body" and isinstance(value, list):
                value = [item for item in value if not _is_text(item)]
            if value not in (None, []):
                fields.append([key, _syntax(value)])
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [_syntax(item) for item in node]
    return repr(node)


def _is_text(node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


@cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """Return the hash of a module's syntax, and the modules of this package that it imports."""
    file = _file(module)
    assert file is not None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    used = {name for name in names if name.split(".")[0] == "mobilebert" and _file(name)}
    return digest(_syntax(tree)), frozenset(used - CARRIERS)


@cache
def modules(stage: str) -> tuple[str, ...]:
    """Return the stage's module and those of this package that it imports, directly or not.

    CARRIERS are left out; so are BOOKKEEPING for every stage but the report.
    """
    found, waiting = set(), [f"mobilebert.stages.{stage}"]
    left_out = frozenset() if stage == "report" else BOOKKEEPING
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(_read(module)[1] - left_out)
    return tuple(sorted(found))


def module_hashes(stage: str) -> dict[str, str]:
    """Return the first 16 digits of the syntax hash of each of `modules`."""
    return {module: _read(module)[0][:16] for module in modules(stage)}


def syntax_hash(*names: str) -> str:
    """Return one hash of the syntax of the named modules of this package."""
    return digest([_read(name)[0] for name in names])


@cache
def code_hash(stage: str) -> str:
    """Return one hash of all code that a stage's result depends on."""
    templates = {}
    if stage == "report":  # the page's template is code of the report
        for file in sorted((PACKAGE / "reporting").glob("*.j2")):
            templates[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digest([{module: _read(module)[0] for module in modules(stage)}, templates])
