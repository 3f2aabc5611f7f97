"""The code hash of a stage: changes that make its records stale, and changes that do not."""

import ast
import shutil

import pytest

from mobilebert.study.code_hash import PACKAGE, _read, _syntax, code_hash, modules
from mobilebert.study.graph import STAGES


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Yield a function that edits a copy of the package and returns the hashes then."""
    copy = tmp_path / "mobilebert"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("mobilebert.study.code_hash.PACKAGE", copy)

    def forget():
        for function in (_read, modules, code_hash):
            function.cache_clear()

    def change(*edits):
        for name, old, new in edits:
            text = (copy / name).read_text()
            assert old in text
            (copy / name).write_text(text.replace(old, new))
        forget()
        return {stage: code_hash(stage) for stage in STAGES}

    forget()
    yield change
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def before():
    return {stage: code_hash(stage) for stage in STAGES}


def test_a_comment_or_a_docstring_changes_no_code_hash(before, package):
    line = "            place = clock.place(step)"
    comment = ("training/loop.py", line, f"            # said anew\n{line}")
    assert package(comment, ("study/schedule.py", '"""Compute the multiplier', '"""Rates')) == before


def test_a_statement_changes_the_stages_that_use_it(before, package):
    after = package(("study/schedule.py", "1.0 - 0.1 * math.sqrt", "1.0 - 0.2 * math.sqrt"))
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {
        "pretrain",
        "transfer",
        "distill",
        "attention",
        "finetune",
        "quantize",
    }
    after = package(("evaluation/glue.py", "import numpy as np", "import numpy as np\nEXTRA = 1"))
    assert after["finetune"] != before["finetune"]
    assert after["latency"] == before["latency"]


def test_modules_that_count_flops_or_check_ahead_make_no_training_stale(before, package):
    edit = ("\n\ndef ", "\n\nEXTRA = 1\n\n\ndef ")
    files = ("study/budget.py", "data/preflight.py", "util/machine.py", "util/progress.py")
    assert package(*((file, *edit) for file in files)) == before
    after = package(("modeling/cost.py", *edit))
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"report"}


def test_a_template_is_code_of_the_report(before, package):
    after = package(("reporting/page.html.j2", "</html>", "<!-- x --></html>"))
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"report"}


def test_modules_of_a_stage_include_the_model_that_it_uses():
    assert "mobilebert.modeling.layers" in modules("finetune")
    assert "mobilebert.modeling.layers" not in modules("data")
    for stage in ("pretrain", "transfer", "distill", "checkpoint", "finetune", "quantize", "latency"):
        assert {"mobilebert.modeling.layers", "mobilebert.modeling.encoder"} <= set(modules(stage)), stage
    assert "mobilebert.study.load" not in modules("finetune")


def test_the_code_hash_ignores_empty_fields_of_newer_pythons():
    one, two = ast.parse("def f(x):\n    return x"), ast.parse("def f(x):\n    return x")
    two.body[0].type_params = []  # Python 3.12 adds this
    assert _syntax(one) == _syntax(two)
