"""Packages of the extras, which a machine that only trains does without."""

from __future__ import annotations

from mobilebert.util.errors import UserError


def not_installed(error: ModuleNotFoundError) -> UserError:
    """What the user of such a machine is told. A missing module of our own is no user's error: `error` is raised again."""
    package = (error.name or "mobilebert").partition(".")[0]
    if package == "mobilebert":
        raise error
    return UserError(f"{package} is not installed; it comes with: pip install '.[workflow,deploy]'")
