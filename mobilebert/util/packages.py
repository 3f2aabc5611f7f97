"""Report a missing package of the extras, and load one that another package would break."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module

from mobilebert.util.errors import UserError


def not_installed(error: ModuleNotFoundError) -> UserError:
    """Return the UserError for a missing package. Raise `error` again if the module is ours."""
    package = (error.name or "mobilebert").partition(".")[0]
    if package == "mobilebert":
        raise error
    extra = "tensorflow" if package in ("tensorflow", "keras") else "workflow,deploy"
    return UserError(f"{package} is not installed; it comes with: pip install '.[{extra}]'")


def load_triton() -> None:
    """Load triton's library, if triton is installed, so that TensorFlow in this process is no harm.

    CUDA builds of PyTorch bring triton and load it late. After TensorFlow's library that ends the
    process: segmentation fault (TensorFlow 2.21, triton 3.7). With its own symbols first it loads.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))  # Linux alone has it
    try:
        with contextlib.suppress(ImportError):
            import_module("triton._C.libtriton")
    finally:
        sys.setdlopenflags(flags)
