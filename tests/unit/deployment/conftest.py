"""Tests here run with the kernels of the processor, whatever the caller's variables say."""

import pytest

from mobilebert.deployment.int8 import LIMITS


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """Unset the variables that narrow kernels: a record names them."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
