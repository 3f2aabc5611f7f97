"""An error is one short line, whatever the user wrote and however many names are allowed."""

import pytest

from mobilebert.study.graph import build_graph, find_job
from mobilebert.study.load import load_study
from mobilebert.util.errors import LONGEST, UserError, allowed, shown


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\tb", "a\0b", "a\x1b[31mb", "a\u2028b", "a\x85b"])
def test_an_error_is_one_line_that_prints(text):
    line = str(UserError(f"{text}: wrong"))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert line.startswith("a\\")


def test_a_long_error_keeps_its_start_and_its_end():
    line = str(UserError(f"file: key: {'x' * 10**6}; allowed: 1"))
    assert len(line) <= LONGEST
    assert line.startswith("file: key: xxx")
    assert line.endswith("xxx; allowed: 1")
    assert str(UserError("ä" * LONGEST)) == "ä" * LONGEST


def test_the_names_most_like_the_mistyped_one_are_listed_first():
    names = [f"name-{number}" for number in range(170)] + ["mobilebert"]
    text = allowed(names, "mobilebirt")
    assert text.startswith("allowed: mobilebert, ")
    assert text.endswith(", ... (171 in all)")
    assert len(text) < 160
    assert allowed(["b", "a"], "x") == "allowed: b, a"
    assert allowed(["long " * 50, "b"], "").startswith("allowed: long ")


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "'x'"), (3, "3"), ([], "[]"), ([1, 2], "a list of 2"), ({"a": 1}, "a dict of 1"), ("y" * 500, "'" + "y" * 56 + "...")],
)
def test_values_are_quoted_short(value, text):
    assert shown(value) == text


def test_an_unknown_name_lists_the_nearest_of_all_rows():
    graph = build_graph(load_study("paper"))
    for name, near in (("mobilebert/sst3", "mobilebert/sst2"), ("search-z/sst2", "search-")):
        with pytest.raises(UserError) as caught:
            find_job(graph, "finetune", name)
        assert f"unknown name '{name}'; allowed: {near}" in str(caught.value)
        assert len(str(caught.value)) < 250
    with pytest.raises(UserError, match="checkpoint: unknown name 'x'; allowed: none"):
        find_job(graph, "checkpoint", "x")
