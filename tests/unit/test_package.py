"""The package itself: light to import, complete in its exports, registered with transformers only on request."""

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
    with pytest.raises(AttributeError, match="MobileBertForPoetry"):
        mobilebert.MobileBertForPoetry  # noqa: B018


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mobilebert.__version__ == project["version"]


def test_auto_classes_are_registered_only_on_request():
    code = (
        "import mobilebert, transformers as t\n"
        "before = t.AutoConfig.for_model('mobilebert').__class__.__module__\n"
        "mobilebert.register_auto_classes()\n"
        "config = t.AutoConfig.for_model('mobilebert', num_hidden_layers=1, vocab_size=40)\n"
        "kinds = ['', 'ForPreTraining', 'ForMaskedLM', 'ForNextSentencePrediction', 'ForSequenceClassification',"
        " 'ForMultipleChoice', 'ForTokenClassification', 'ForQuestionAnswering']\n"
        "autos = [type(getattr(t, 'AutoModel' + kind).from_config(config)) for kind in kinds]\n"
        "assert autos == [getattr(mobilebert, 'MobileBert' + (kind or 'Model')) for kind in kinds], autos\n"
        "print(before, type(config).__module__)"
    )
    before, after = run(code).split()
    assert before.startswith("transformers.")
    assert after == "mobilebert.modeling.configuration"
