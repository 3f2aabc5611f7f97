"""The package itself: light to import, complete in its exports."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import mobilebert
from mobilebert.cli.main import main
from mobilebert.util.packages import not_installed


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


def test_a_missing_package_is_a_one_line_error(monkeypatch, tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as on a machine with only the core dependencies
    assert main(["predict", str(tmp_path / "model.onnx"), "--task", "sst2", "--text", "a film"]) == 2
    assert capsys.readouterr().err == (
        "mobilebert: onnxruntime is not installed; it comes with: pip install '.[workflow,deploy]'\n"
    )
    with pytest.raises(ModuleNotFoundError):
        not_installed(ModuleNotFoundError("No module named 'mobilebert.poetry'", name="mobilebert.poetry"))


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mobilebert.__version__ == project["version"]
