"""The committed tables are those that the committed records give."""

import json
import re
from pathlib import Path

import pytest

from mobilebert.cli.main import main
from mobilebert.jobs.record import sealed
from mobilebert.paper.claims import claims

REPORTS = Path(__file__).parents[3] / "reports"
FOLDERS = sorted(path.parent for path in REPORTS.glob("*/tables.md"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_of_a_report_are_made_again_from_its_records(folder, tmp_path, capsys):
    assert main(["report", "--records", str(folder), "--out", str(tmp_path)]) == 0
    assert re.fullmatch(rf"{tmp_path}/tables.md, {tmp_path}/index.html: \d+ records; .*\n", capsys.readouterr().out)
    hint = f"run: mobilebert report --records reports/{folder.name}"
    assert (tmp_path / "tables.md").read_text() == (folder / "tables.md").read_text(), hint
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'<h2 id="(\w+)"', page)[:3] == ["headline", "claims", "expectations"]
    assert len(re.findall(r'<li id="claim-', page)) == len(claims())


def test_claims_read_every_timing_and_the_tables_show_the_first(tmp_path, capsys):
    record = json.loads((FOLDERS[0] / "latency/result.json").read_text())
    for number in range(3):
        record["metrics"]["bert-base/pytorch:p50_ms"] = (4 + number) * record["metrics"]["mobilebert/pytorch:p50_ms"]
        path = tmp_path / f"again/{number}/latency/result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(sealed(record)))
    assert main(["report", "--records", str(tmp_path), "--study", str(FOLDERS[0] / "cpu.yaml")]) == 0
    capsys.readouterr()
    text = (tmp_path / "tables.md").read_text()
    mean = (4 * 5 * 6) ** (1 / 3)
    assert f"mobilebert is {mean:.2f} times as fast as bert-base, with 95 % confidence" in text
    assert "(3 timings)" in text


def test_a_report_of_two_studies_or_none_is_refused(tmp_path, capsys):
    report = tmp_path / "report"
    folder = FOLDERS[0]
    for key in ("data", "again/data"):
        (report / key).mkdir(parents=True)
        (report / key / "result.json").write_text((folder / "data/result.json").read_text())
    refused = ["report", "--records", str(report), "--out", str(tmp_path / "out")]
    assert main(refused) == 2
    assert "a second record of data" in capsys.readouterr().err
    (report / "again/data/result.json").unlink()
    for name in ("a.yaml", "b.yaml"):
        (report / name).write_text("schema: 1\n")
    assert main(refused) == 2
    assert "two studies, a.yaml and b.yaml; choose one with --study" in capsys.readouterr().err
    assert main(["report", "--out", str(tmp_path / "out")]) == 2
    assert "--out is for --records" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
