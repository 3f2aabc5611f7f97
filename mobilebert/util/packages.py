"""Report a missing package of the extras, which a machine that only trains does not need."""

from __future__ import annotations

from mobilebert.util.errors import UserError


def not_installed(error: ModuleNotFoundError) -> UserError:
    """Return the UserError for a missing package. Raise `error` again if the module is ours."""
    package = (error.name or "mobilebert").partition(".")[0]
    if package == "mobilebert":
        raise error
    extra = "tensorflow" if package in ("tensorflow", "keras") else "workflow,deploy"
    return UserError(f"{package} is not installed; it comes with: pip install '.[{extra}]'")
