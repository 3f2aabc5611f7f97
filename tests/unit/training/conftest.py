"""A recorder in place of CUDA graphs."""

import pytest
from recording import Recorder

from mobilebert.training.accelerated import cuda_graphs


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Capture", Recorder)
    monkeypatch.setattr(Recorder, "log", [])
    return Recorder
