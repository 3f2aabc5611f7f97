"""The words for a visitor: lines that fit, a paragraph for every verdict, JSON of numbers."""

import json
import re
from pathlib import Path

import pytest
from test_collect import write
from test_judge import answers, losses, only, schedules, timings

from mobilebert.claims import text
from mobilebert.claims.collect import collect, sources_in
from mobilebert.claims.judge import judge
from mobilebert.claims.measured import Measured
from mobilebert.cli.main import main
from mobilebert.paper.claims import claims

REPORT = Path(__file__).parents[3] / "reports" / "cpu"


@pytest.fixture(scope="module")
def committed():
    measured = collect(sources_in(REPORT))
    return judge(claims(), measured), measured


def test_the_table_fits_120_columns_and_names_every_claim(committed):
    lines = text.plain(*committed).splitlines()
    assert max(map(len, lines)) <= text.WIDTH
    assert sum(text.COLUMNS) + len(text.COLUMNS) - 1 <= text.WIDTH
    for claim in claims():
        assert len([line for line in lines if re.match(rf".{{{text.COLUMNS[0]}}} {claim.id} ", line)]) == 1
        assert any(line.startswith(f"{claim.id}: ") for line in lines)


def test_the_one_teacher_of_all_student_claims_is_printed(committed):
    expected = "one teacher: ib-bert-large with seed 0, 6.18 nat, 0.86 below the unigram entropy."
    assert text.condition(committed[1]) == f"Every claim on students is conditional on {expected}"
    assert text.condition(Measured()) == "No teacher is among the records."


def test_a_paragraph_says_what_was_measured_and_what_it_means():
    held, failed, open_ = (text.paragraph(only("teacher-pays", losses(gap))) for gap in (0.3, -0.3, 0.05))
    assert "the held-out loss of mobilebert is 0.300 nat lower than that of scratch, with 95 % confidence +0.2" in held
    assert held.endswith("(3 seeds). The claim holds in this study.")
    assert "is 0.300 nat higher than that of scratch" in failed
    assert "The claim does not hold in this study" in failed
    told = re.search(r"A difference of ([\d.]+) nat would have been told in 8 of 10 such studies\.$", open_)
    assert told
    assert float(told[1]) == pytest.approx(0.05 + only("teacher-pays", losses(0.05)).smallest, abs=0.001)
    other = text.paragraph(only("faster-than-bert-base", timings(3.0, "EPYC")))
    assert "mobilebert is 3.03 times as fast as bert-base, with 95 % confidence 3." in other
    assert other.endswith("No verdict: timed on EPYC, not on a Pixel 4. The paper's figure is 5.5.")
    int8 = text.paragraph(only("int8-loses-nothing", answers(60)))
    assert "scores 1.20 points less" in int8
    assert "In points: qnli -1.20 of 5,000 rows." in int8


def test_one_comparison_of_two_beyond_the_margin_is_not_said_to_straddle_it():
    finding = only("order-of-schedules", schedules(-0.1, 0.3, sd=0.03 * 0.05 / 0.068))
    (_, high), _ = finding.intervals
    assert (finding.verdict, high < -0.05) == ("inconclusive", True)
    assert "as one of 2 it must do so with 97.5 % confidence" in text.paragraph(finding)


def test_every_paragraph_is_sentences_without_gaps(committed):
    for finding in committed[0]:
        paragraph = text.paragraph(finding)
        assert paragraph.endswith(".")
        assert not re.search(r"\s\s|\.\.|\(\)|None|nan|inf\b", paragraph)


def test_the_command_prints_text_and_json(capsys):
    assert main(["claims", "--records", str(REPORT)]) == 0
    assert capsys.readouterr().out.startswith("8 primary claims: 1 reproduced, 1 other device, 6 not run;")
    assert main(["claims", "--records", str(REPORT), "--json"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [item["id"] for item in data["claims"]] == [claim.id for claim in claims()]
    speed = next(item for item in data["claims"] if item["id"] == "faster-than-bert-base")
    assert (speed["verdict"], speed["links"][0]["n"], speed["links"][0]["interval"]) == ("other device", 1, [0.0, None])


def test_records_of_other_code_are_named_not_passed_over(tmp_path, capsys):
    write(tmp_path / "smoke", "data", study="smoke")
    assert main(["claims", "--study", "smoke", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("claims: 1 of 1 records are not current, so they are not read (why: mobilebert why data")
    assert f"--records {tmp_path}/smoke reads all of them" in printed.err


@pytest.mark.parametrize("arguments", [["--records", "/nowhere"], ["--records", str(REPORT), "--study", "cpu"]])
def test_bad_arguments_are_one_line(arguments, capsys):
    assert main(["claims", *arguments]) == 2
    assert re.fullmatch(r"mobilebert: .+\n", capsys.readouterr().err)


def test_an_open_claim_says_where_its_interval_lies():
    measured = collect(sources_in(REPORT.parent / "evening"))
    words = {finding.claim.id: text.paragraph(finding) for finding in judge(claims(), measured)}
    between = "This study cannot tell: the interval lies between -0.050 and +0.050, which counts neither as a gain nor as a loss."
    assert between in words["fmt-helps"]
    assert between in words["at-helps"]
    # PKT is as good as JKT within the margin; JKT may be worse than AKT by more.
    assert "the interval of comparison 2 holds values on both sides of a margin" in words["order-of-schedules"]
