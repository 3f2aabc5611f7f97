"""The package itself: light to import, complete in its exports."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import mobilebert


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    code = "import sys, mobilebert; print(sorted({'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules)))"
    assert run(code) == "[]"


def test_every_exported_name_is_there():
    for name in mobilebert.__all__:
        assert getattr(mobilebert, name) is not None
        assert name in dir(mobilebert)
    assert mobilebert.MobileBertTokenizer is transformers.MobileBertTokenizer
    assert mobilebert.MobileBertTokenizerFast is transformers.MobileBertTokenizerFast
    with pytest.raises(AttributeError, match="MobileBertForPoetry"):
        mobilebert.MobileBertForPoetry  # noqa: B018


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mobilebert.__version__ == project["version"]
