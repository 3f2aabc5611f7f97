"""triton and TensorFlow in one process: whichever comes first, the process goes on."""

import importlib.util
import os
import subprocess
import sys

import pytest

from mobilebert.util.packages import load_triton


@pytest.fixture
def triton(tmp_path, monkeypatch):
    """Install a triton that notes how its library is loaded."""
    (tmp_path / "triton/_C").mkdir(parents=True)
    for name in ("__init__", "_C/__init__"):
        (tmp_path / f"triton/{name}.py").touch()
    (tmp_path / "triton/_C/libtriton.py").write_text("import sys\nflags = sys.getdlopenflags()\n")
    for name in ("triton", "triton._C", "triton._C.libtriton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("triton", "triton._C", "triton._C.libtriton"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(not hasattr(os, "RTLD_DEEPBIND"), reason="this system's loader has no RTLD_DEEPBIND")
def test_triton_is_loaded_with_its_own_symbols_first(triton):
    before = sys.getdlopenflags()
    load_triton()
    assert sys.modules["triton._C.libtriton"].flags == before | os.RTLD_DEEPBIND
    assert sys.getdlopenflags() == before


def test_a_triton_that_cannot_be_loaded_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    before = sys.getdlopenflags()
    load_triton()
    assert sys.getdlopenflags() == before


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("triton", "tensorflow"))), reason="triton (of a CUDA build) or TensorFlow is missing"
)
@pytest.mark.parametrize("first", ["tensorflow", "mobilebert, tensorflow", "mobilebert.tf, tensorflow", "mobilebert.tf.model"])
def test_tensorflow_and_pytorchs_compiler_load_in_one_process(first):
    program = [f"import {first}", "from mobilebert import MobileBertModel", "import torch._dynamo"]
    subprocess.run([sys.executable, "-c", "; ".join(program)], check=True)
