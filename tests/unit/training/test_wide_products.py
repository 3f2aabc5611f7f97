"""The library of docs/training.md that gives PyTorch AVX-512 on processors of AMD."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[3] / "docs/training.md"
PRODUCT = """
import numpy as np, torch
left, right = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)
np.testing.assert_allclose((torch.from_numpy(left) @ torch.from_numpy(right)).numpy(), left @ right, rtol=1e-5)
print("avx512.so" in open("/proc/self/maps").read())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("gcc") is None, reason="needs Linux and gcc")
def test_pytorch_computes_the_same_products_with_the_library(tmp_path):
    (command,) = re.findall(r"^echo '.*avx512\.so$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "avx512.so"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", PRODUCT], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"
