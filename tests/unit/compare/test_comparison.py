"""`mobilebert compare`: what differs, every metric, the formats; runs written by hand."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written import rewrite, write, write_run

from mobilebert.cli.main import main
from mobilebert.compare.metrics import better, judge
from mobilebert.compare.paper import deviation

ROOT = Path(__file__).parents[3]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Return the folders of two equal runs, seen from the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "a"), write_run(tmp_path / "b")


def compared(capsys, *words) -> str:
    assert main(["compare", *map(str, words)]) == 0
    return capsys.readouterr().out


def command(*words, stdout=subprocess.PIPE, **variables) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, whose output is buffered as outside tests."""
    line = [sys.executable, "-m", "mobilebert", "compare", *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, env=environment, text=True, check=False)


def test_equal_runs_are_one_line(two, capsys):
    assert compared(capsys, *two).splitlines() == [
        "equal: 3 metrics of 3 records, to the digit; configuration, data, code and environment too; 2 times are not compared"
    ]


def test_times_of_equal_runs_may_differ(two, capsys):
    write_run(two[1], ratio=2.1)
    assert compared(capsys, *two).startswith("equal: ")


def test_a_changed_learning_rate_is_named_first(two, capsys):
    write_run(two[1], rate=2e-3, accuracy=0.8)
    rewrite(two[1] / "data/result.json", versions={"torch": "2.14.0"}, modules={"mobilebert.stages.data": "ff"})
    lines = compared(capsys, *two).splitlines()
    assert lines[3:5] == ["Configuration:", "  finetune.learning_rate: 0.001 → 0.002 (finetune/mobilebert/sst2)"]
    heads = [line for line in lines if line in ("Configuration:", "Data:", "Code:", "Environment:")]
    assert heads == ["Configuration:", "Code:", "Environment:"]
    (score,) = [line.split() for line in lines if line.startswith("  accuracy")]
    assert score == ["accuracy", "↑", "0.9000", "0.8000", "-0.1000", "1/1", "differs"]
    jobs = [line for line in lines if line in ("data", "finetune/mobilebert/sst2", "latency")]
    assert jobs == ["finetune/mobilebert/sst2", "data", "latency"]  # the record that changed comes first


def test_one_key_of_many_records_is_one_line(two, capsys):
    for folder, steps in zip(two, (100, 200), strict=True):
        for name in ("mobilebert", "mobilebert-akt", "mobilebert-jkt"):
            write(folder, f"distill/{name}", {"steps": steps, "seed": 0}, {"heldout_mlm_loss": 1.0})
    out = compared(capsys, *two)
    assert "  distill.steps: 100 → 200 (distill/mobilebert and 2 more)" in out
    assert out.count("distill.steps") == 1


def test_other_data_are_named_by_file_and_by_rows(two, capsys):
    details = {"files": {"synthetic/sst2": "cc"}, "vocab": "bb", "rows": {"sst2": {"train": 700}}}
    rewrite(two[1] / "data/result.json", details=details)
    out = compared(capsys, *two)
    assert "Data:\n  data.files.synthetic/sst2: aa → cc (data)\n  data.rows.sst2.train: 800 → 700 (data)\n" in out


def test_runs_that_differ_in_their_seeds_alone_are_one_side(two, tmp_path, capsys):
    for seed, accuracy in ((1, 0.91), (2, 0.93)):
        write_run(tmp_path / f"s{seed}", seed=seed, accuracy=accuracy)
    write_run(tmp_path / "other", seed=3, rate=1.0)
    found = json.loads(compared(capsys, two[0], tmp_path / "s1", tmp_path / "s2", tmp_path / "other", "--json"))
    assert [len(one["metrics"][2]["new"]["values"]) for one in found["comparisons"]] == [2, 1]
    assert found["comparisons"][0]["differences"] == []
    score = found["comparisons"][0]["metrics"][2]
    assert score["metric"] == "accuracy"
    assert score["new"]["values"] == [0.91, 0.93]
    assert score["new"]["mean"] == pytest.approx(0.92)


def test_a_copy_is_no_further_seed(two, tmp_path, capsys):
    write_run(tmp_path / "c", seed=1)
    assert main(["compare", "c", "a", "b"]) == 2
    assert capsys.readouterr().err == "mobilebert: b: holds the records of a; the same values are no further seeds\n"
    compared(capsys, "a", "b", "c")  # a copy of the base is no seed of the other side


def test_seeds_of_fine_tuning_give_an_interval(tmp_path, capsys):
    a = write_run(tmp_path / "a", samples=[0.90, 0.91, 0.89, 0.90, 0.92])
    b = write_run(tmp_path / "b", samples=[0.80, 0.81, 0.79, 0.80, 0.82], accuracy=0.8)
    (line,) = [line.split() for line in compared(capsys, a, b).splitlines() if line.startswith("  accuracy")]
    assert line[2:5] == ["0.9040", "±", "0.0114"]
    # Welch: t(8, 2.5 %) = 2.306 times 0.0114018 x sqrt(2/5).
    assert line[8:] == ["-0.1000", "±", "0.0166", "5/5", "worse"]


def test_a_missing_an_edited_and_a_void_record_say_so(two, capsys):
    (two[1] / "pretrain/ib-bert-large/result.json").unlink()
    rewrite(two[1] / "finetune/mobilebert/sst2/result.json", seal=False, metrics={"accuracy": 1.0})
    rewrite(two[1] / "latency/result.json", status="void", reason="busy")
    lines = compared(capsys, *two).splitlines()
    assert [line.split()[-1] for line in lines if re.match("  (accuracy|heldout|mobilebert/pyt)", line)] == ["edited", "void"]
    assert "pretrain/ib-bert-large: missing in the new" in lines
    assert "  only in the base: 1 → – (pretrain/ib-bert-large)" in lines
    assert "  edited by hand: – → edited (finetune/mobilebert/sst2)" in lines


def test_no_line_is_wider_than_120_columns(two, capsys):
    write(two[1], f"finetune/{'m' * 90}/sst2", {"k" * 90: "v" * 200}, {"long_" * 30 + "accuracy": 0.5})
    write(two[0], f"finetune/{'m' * 90}/sst2", {"k" * 90: "w" * 200}, {"long_" * 30 + "accuracy": 0.6})
    assert max(map(len, compared(capsys, *two).splitlines())) <= 120


def test_long_numbers_take_their_room_from_the_names(tmp_path, capsys):
    samples = [[-1.2345678e99, 9.8765432e98], [-1.2345678e-99, -9.8765432e-98, 3e-5]]
    for folder, each in zip((tmp_path / "a", tmp_path / "b"), samples, strict=True):
        write(folder, "finetune/mobilebert/sst2", {"seeds": [0]}, {"long_" * 9 + "f1": 0.5}, samples={"long_" * 9 + "f1": each})
    assert 110 < max(map(len, compared(capsys, tmp_path / "a", tmp_path / "b").splitlines())) <= 120


def test_a_small_number_is_not_shown_as_0(tmp_path, capsys):
    a, b = write_run(tmp_path / "a", accuracy=4e-5), write_run(tmp_path / "b", accuracy=3e-5)
    (line,) = [line.split() for line in compared(capsys, a, b).splitlines() if line.startswith("  accuracy")]
    assert line[2:5] == ["4e-05", "3e-05", "-1e-05"]


def test_html_escapes_what_records_say_and_loads_nothing(two, capsys, tmp_path):
    rewrite(two[1] / "data/result.json", versions={"torch": '<script>alert("x")</script>'})
    page = tmp_path / "page.html"
    compared(capsys, *two, "--html", page)
    tags, links = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            links.extend(value for name, value in attrs if name in ("src", "href"))

    Reader().feed(page.read_text())
    assert "script" not in tags
    assert not links
    assert "&lt;script&gt;" in page.read_text()


@pytest.mark.parametrize("odd", [None, "a\n<b>", [], {}, [[1], {"x": None}], -1, 10**400, True])
def test_records_with_odd_fields_are_compared(two, tmp_path, capsys, odd):
    for field in ("files", "rows", "vocab"):
        rewrite(two[1] / "data/result.json", details={field: odd})
    for key in ("finetune/mobilebert/sst2", "pretrain/ib-bert-large"):
        rewrite(two[1] / key / "result.json", config={"seed": odd, "seeds": odd, "x": odd}, machine={"cpu": odd}, labels=[])
    rewrite(two[1] / "finetune/mobilebert/sst2/result.json", samples={"accuracy": [odd, odd]})
    for words in ((), ("--json",), ("--html", tmp_path / "page.html")):
        assert "accuracy" in compared(capsys, *two, *words)
        assert "accuracy" in compared(capsys, two[1], two[0], *words)


@pytest.mark.parametrize("huge", [1e300, -1e308])
def test_a_value_without_a_variance_is_missing(tmp_path, capsys, huge):
    a = write_run(tmp_path / "a", accuracy=huge, samples=[huge, 0.9, 0.8])
    b = write_run(tmp_path / "b", accuracy=huge, samples=[huge, -huge, huge])
    assert "finetune/mobilebert/sst2: missing in the new" in compared(capsys, a, b).splitlines()


def test_a_terminal_of_another_encoding_shows_a_replacement(two):
    rewrite(two[1] / "finetune/mobilebert/sst2/result.json", metrics={"accuracy": 0.8})
    done = command(*two, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mean ? standard deviation" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
def test_a_full_disk_is_one_line_even_if_it_is_met_at_the_exit(two):
    with Path("/dev/full").open("w") as full:
        done = command(*two, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("mobilebert: ")


def test_an_error_without_any_output_is_one_line(two):
    line = f"{sys.executable} -m mobilebert compare a b --html a/data/result.json/page.html >&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, env=environment, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_closed_pipe_is_silent(two):
    reader, writer = os.pipe()
    os.close(reader)
    done = command(*two, "--html", "page.html", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")  # neither the gate's 1 nor an error
    assert Path("page.html").is_file()


def test_a_pipe_that_is_named_as_a_file_is_written_to_and_stays(two, capsys):
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    compared(capsys, *two, "--html", "pipe")
    assert os.read(reader, 15) == b"<!DOCTYPE html>"
    os.close(reader)
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "nope"], "nope: no such folder"),
        (["a", "empty"], "empty: holds no record; name a study's results, as results/smoke"),
        (["damaged", "a"], "damaged/data/result.json: not a record of schema 1: "),
        (["a", "b", "--gate"], "a: --gate needs a baseline with gated metrics; make one: mobilebert baseline OUT.json"),
        (["a", "b", "--junit", "x.xml"], "compare: --junit writes the gate's verdicts; add --gate"),
        (["paper", "a", "b"], "compare: paper takes one folder of records, without --gate, --html and --log"),
        (["a", "b", "./a"], "./a: named as BASE and as NEW; a run equals itself"),
        (["paper", "empty"], "empty: holds no record; name a study's results, as results/smoke"),
        (["paper", "damaged"], "damaged/data/result.json: not a record of schema 1: "),
        (["a", "b", "a", "b/"], "b: named twice; the same values are no further seeds"),
        (["a", "runs:/1"], "runs:/1: set MLFLOW_TRACKING_URI to the store, as sqlite:///results/smoke/mlflow.db"),
        (["a/data/result.json", "b"], "a/data/result.json: not a baseline of schema 1: "),
    ],
)
def test_a_wrong_side_is_one_line(two, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged/data").mkdir(parents=True)
    (tmp_path / "damaged/data/result.json").write_text("{}")
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mobilebert: {said}")
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("heldout_mlm_loss", "lower"),
        ("heldout_transfer_loss", "lower"),
        ("heldout_bits_per_byte", "lower"),
        ("mobilebert/pytorch:p50_ms", "lower"),
        ("failed_share", "lower"),
        ("accuracy_change", "higher"),
        ("mismatched_accuracy", "higher"),
        ("best_f1", "higher"),
        ("matthews_correlation", "higher"),
        ("best_f1_thresh", None),
        ("constant_exact_match", None),
        ("majority", None),
        ("vocab_size", None),
        ("bytes_after", None),
    ],
)
def test_which_way_is_better(metric, way):
    assert better(metric) == way


@pytest.mark.parametrize(
    ("base", "new", "way", "verdict"),
    [
        ([0.9], [0.9], "higher", "same"),
        ([600.0] * 20, [600.0], None, "same"),
        ([0.9], [0.8], "higher", "differs"),
        ([0.9, 0.91, 0.92], [0.5], "higher", "worse"),
        ([0.9, 0.91, 0.92], [0.5], "lower", "better"),
        ([0.9, 0.91, 0.92], [0.5], None, "changed"),
        ([0.9, 0.91, 0.92], [0.93], "higher", "unclear"),
    ],
)
def test_verdict_of_two_sides(base, new, way, verdict):
    assert judge(base, new, way) == verdict


def test_comparison_with_the_paper_orders_deviations_by_size(tmp_path, capsys):
    labels = ["search: none, one setting a task", "scaled: distill sees 1.0e-02 of the paper's tokens"]
    labels += ["scaled: pretrain sees 1.0e-06 of the paper's tokens", "synthetic: generated data"]
    write(tmp_path, "finetune/mobilebert/sst2", {"seeds": [0]}, {"accuracy": 0.95}, labels=labels)
    out = compared(capsys, "paper", tmp_path)
    table_8 = out[out.index("Table 8, PKT (mobilebert)") :]
    assert [line.strip() for line in table_8.splitlines()[1:8]] == [
        "SST-2  published   92.1 %  measured 95.0 (n=1), +2.9, not judged",
        "known deviations, the largest first:",
        "- synthetic: generated data",
        "- scaled: pretrain sees 1.0e-06 of the paper's tokens",
        "- scaled: distill sees 1.0e-02 of the paper's tokens",
        "- search: none, one setting a task",
        "- seeds: the median of 1 fine-tuning seed",
    ]
    assert "test server" in out[: out.index("Table 8")]
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("share", ["0", "1e-999", ".", "..", "e"])
def test_a_share_that_is_no_number_has_no_size(share):
    assert deviation(f"scaled: pretrain sees {share} of the paper's tokens").factor == 1


def test_the_size_of_a_deviation_is_read_from_its_label():
    assert deviation("scaled: pretrain sees 2.0e-02 of the paper's tokens").factor == pytest.approx(50)
    assert deviation("scaled: widths / 8, layers / 12").factor == 96
    assert deviation("subset (train): 8 rows").kind == "rows"
    assert deviation("something else").kind == "other"
