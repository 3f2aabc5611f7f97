"""`mobilebert table` in every format, from every kind of folder; the oracle is the paper's data."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written import write

from mobilebert import paper
from mobilebert.cli.main import main

ROOT = Path(__file__).parents[3]
COMMITTED = sorted(path for path in (ROOT / "reports").iterdir() if (path / "finetune").is_dir())
LABELS = ["synthetic: generated data", "scaled: widths / 8, layers / 12"]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three scores: of two labels, the same in another order, and one more."""
    for task, labels in (("sst2", LABELS), ("mrpc", LABELS[::-1]), ("qnli", [*LABELS, "subset (train): 800 rows"])):
        write(tmp_path, f"finetune/mobilebert/{task}", {"seeds": [0, 1]}, {"accuracy": 0.9, "f1": 0.9}, labels=labels,
              samples={"accuracy": [0.88, 0.92]})  # fmt: skip
    return tmp_path


def table(capsys, number, folder, kind, *words) -> str:
    assert main(["table", str(number), "--records", str(folder), "--format", kind, *words]) == 0
    return capsys.readouterr().out


def cells(number):
    return [(row, column) for row in paper.table(number).rows for column in paper.table(number).columns]


class Rows(HTMLParser):
    """The texts of a page's table cells, a list a row."""

    def __init__(self):
        super().__init__()
        self.rows, self.open, self.tags = [], False, set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open = tag in ("td", "th") or (self.open and tag == "span")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize("source", ["empty", "three", *COMMITTED], ids=lambda value: getattr(value, "name", value))
def test_every_table_renders_in_every_format(source, number, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    where = {"empty": tmp_path / "empty", "three": folder}.get(source, source)
    rows = json.loads(table(capsys, number, where, "json"))["cells"]
    printed = [row for row in rows if row["column"] != "Speed-up"]  # the paper prints no speed-up
    assert [row["published"] for row in printed] == [
        row.published.get(column.key) for row, column in cells(number) if column.head != "Speed-up"
    ]
    lines = list(csv.DictReader(io.StringIO(table(capsys, number, where, "csv"))))
    assert [(line["row"], line["column"], line["verdict"]) for line in lines] == [
        (row["row"], row["column"], row["verdict"] or "") for row in rows
    ]
    assert max(map(len, table(capsys, number, where, "text").splitlines())) <= 120
    latex = table(capsys, number, where, "latex")
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    count = len(paper.table(number).columns) + 1
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if line.endswith(r"\\")} == {count}
    page = Rows()
    page.feed(table(capsys, number, where, "html"))
    assert not page.tags & {"script", "link", "img"}
    markdown = [line for line in table(capsys, number, where, "md").splitlines() if line.startswith("| ")]
    assert len(page.rows) == len(markdown) - 1  # Markdown has a line of dashes


def test_labels_common_to_all_scores_are_said_once_and_their_order_makes_no_footnote(folder, capsys):
    for kind in ("md", "text", "html", "latex"):
        out = table(capsys, 8, folder, kind)
        assert out.count("synthetic: generated data") == 1
        assert "All scores: synthetic: generated data, scaled: widths / 8, layers / 12." in out
        assert out.count("subset (train): 800 rows") == 1
        assert "[1]" in out or kind == "html"
        assert "[2]" not in out


def test_a_row_of_csv_and_json_says_all_about_its_cell(folder, capsys):
    rows = json.loads(table(capsys, 8, folder, "json"))["cells"]
    (row,) = [row for row in rows if row["row"] == "PKT" and row["column"] == "QNLI"]
    assert row.pop("spread") == pytest.approx(2.8284, abs=1e-4)
    assert row == {
        "table": 8, "row": "PKT", "model": "mobilebert", "column": "QNLI", "unit": "%", "published": 91.0, "measured": 90.0,
        "n": 2, "verdict": "not judged", "labels": [*LABELS, "subset (train): 800 rows"],
        "record": "finetune/mobilebert/qnli",
        "command": "snakemake --cores 1 results/smoke/finetune/mobilebert/qnli/result.json --config study=smoke",
    }  # fmt: skip
    line = next(item for item in csv.DictReader(io.StringIO(table(capsys, 8, folder, "csv"))) if item["verdict"] == "not judged")
    assert line["labels"] == "; ".join([*LABELS, "subset (train): 800 rows"])
    assert line["measured"] == "90.0"


def test_a_terminal_shows_what_was_not_run_quietly_and_verdicts_loudly(folder, capsys):
    lines = table(capsys, 8, folder, "text").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("PKT"))
    assert lines[start].split() == ["PKT", "published", "83.9", "91.0", "87.5", "92.1", "90.0"]
    value = ["90.0", "±", "2.8", "(n=2)"]
    assert lines[start + 1].split() == ["measured", "·", *value, "[1]", *value, *value, "·"]
    assert lines[start + 2].split() == ["not", "judged"] * 3


def test_latex_escapes_what_labels_say(tmp_path, capsys):
    label = r"changed: a_b 5 % \x {y} #1 & <z> | é ~^ ± 漢"
    write(tmp_path, "finetune/mobilebert/sst2", {"seeds": [0]}, {"accuracy": 0.9}, labels=[label])
    end = r"\textless{}z\textgreater{} \textbar{} é \textasciitilde{}\textasciicircum{} $\pm$ U+6F22\par"
    wanted = r"[1] changed: a\_b 5 \% \textbackslash{}x \{y\} \#1 \& " + end
    assert wanted in table(capsys, 8, tmp_path, "latex").splitlines()


def test_a_label_cannot_steer_a_terminal_or_break_a_line(tmp_path, capsys):
    write(tmp_path, "finetune/mobilebert/sst2", {"seeds": [0]}, {"accuracy": 0.9}, labels=["a\x1b[31mb\n\n\x00c"])
    for kind in ("text", "md", "latex", "csv"):
        out = table(capsys, 8, tmp_path, kind)
        assert "a [31mb c" in out.replace("\\", "")
        assert not re.search(r"[\x00\x1b]", out)


def test_json_is_whole_in_a_terminal_of_another_encoding(tmp_path, capsys):
    assert table(capsys, 4, tmp_path, "json").isascii()  # Table 4 has a dagger


def test_a_label_is_no_formula_of_a_spreadsheet(tmp_path, capsys):
    write(tmp_path, "finetune/mobilebert/sst2", {"seeds": [0]}, {"accuracy": 0.9}, labels=["=1+1"])
    lines = csv.DictReader(io.StringIO(table(capsys, 8, tmp_path, "csv")))
    assert "'=1+1" in {line["labels"] for line in lines}


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX is installed")
@pytest.mark.parametrize("number", range(1, 10))
def test_latex_compiles(number, folder, tmp_path, capsys):
    signs = "".join(map(chr, [*range(0x20, 0x180), 0x3B1, 0x2264, 0x6F22, 0x1F642]))
    write(folder, "finetune/mobilebert/rte", {"seeds": [0]}, {"accuracy": 0.9}, labels=[signs])
    body = table(capsys, number, folder, "latex")
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}"  # the default encoding of fonts has the fewest signs
    (tmp_path / "t.tex").write_text(f"{head}\\begin{{document}}\n{body}\\end{{document}}\n")
    words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_records_of_several_studies_need_a_name(folder, capsys):
    write(folder, "finetune/mobilebert/rte", {"seeds": [0]}, {"accuracy": 0.5}, study="cpu")
    assert main(["table", "8", "--records", str(folder)]) == 2
    line = capsys.readouterr().err
    assert line == f"mobilebert: {folder}: its records are of several studies; name one: --study; allowed: cpu, smoke\n"
    assert "90.0" in table(capsys, 8, folder, "md", "--study", "cpu")


def test_a_damaged_record_is_named_and_the_table_goes_without_it(folder, capsys):
    path = folder / "finetune/mobilebert/qnli/result.json"
    path.write_text(path.read_text()[:100])
    assert main(["table", "8", "--records", str(folder), "--format", "md"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mobilebert: {path}: not a record of schema 1: ")
    assert captured.err.count("\n") == 1
    assert "90.0" in captured.out


def test_an_edited_record_shows_no_value(folder, capsys):
    path = folder / "finetune/mobilebert/qnli/result.json"
    path.write_text(path.read_text().replace("0.9,", "0.99,", 1))
    rows = json.loads(table(capsys, 8, folder, "json"))["cells"]
    assert [(row["measured"], row["n"]) for row in rows if row["verdict"] == "edited"] == [(None, None)]


def test_a_folder_that_is_none_is_one_line(tmp_path, capsys):
    assert main(["table", "8", "--records", str(tmp_path / "nope")]) == 2
    assert capsys.readouterr().err == f"mobilebert: {tmp_path / 'nope'}: no such folder\n"
