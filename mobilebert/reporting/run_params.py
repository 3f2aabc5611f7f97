"""Choose the parameters of MLflow runs: a child keeps those that tell it from other children.

A key that has one value in all jobs of a configuration stays with the parent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from mobilebert.study.code_hash import canonical
from mobilebert.study.job import Graph
from mobilebert.study.stages import VIEWS

SHARED = "all_jobs."  # prefix of a parent's parameter that is the same for every job that has it


def flatten(config: Mapping, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one with dotted keys and texts as values."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def shared(graph: Graph) -> dict[str, str]:
    """Return the keys with one value in at least two jobs, and with no other in any job."""
    found: dict[str, list[str]] = {}
    for job in graph.values():
        if job.stage not in VIEWS:
            for key, text in flatten(job.config).items():
                found.setdefault(key, []).append(text)
    return {key: texts[0] for key, texts in sorted(found.items()) if len(texts) > 1 and len(set(texts)) == 1}


def without_shared(config: Mapping, parent: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return a job's own parameters, and the keys whose value stands in `parent`."""
    flat = flatten(config)
    left_out = [key for key, text in flat.items() if parent.get(key) == text]
    return {key: text for key, text in flat.items() if key not in left_out}, left_out


def _text(value) -> str:
    with contextlib.suppress(ValueError):  # JSON has no NaN, which a list may hold
        return canonical(value) if isinstance(value, list | tuple) else str(value)
    return str(value)
