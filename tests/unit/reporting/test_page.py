"""The report page: self-contained, escaped, complete; read with an HTML parser."""

import base64
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from page_reader import by_id, ids, read

from mobilebert.jobs.record import Record
from mobilebert.reporting.page import duration, kinds, render, render_table
from mobilebert.reporting.tables import fill
from mobilebert.reporting.verdicts import expectations
from mobilebert.stages.report import from_records
from mobilebert.study.schema import Study
from mobilebert.study.sections import Expectation

COMMITTED = Path(__file__).parents[3] / "reports" / "cpu"
EXPECT = Expectation(what="beats the baseline", metric="finetune/mobilebert/sst2:accuracy", above=0.8, reason="a < b & c")
STUDY = Study(schema=1, description="<script>alert(1)</script>", expect=(EXPECT,))


def record(key, status="ok", **fields):
    stage, _, name = key.partition("/")
    content = {"metrics": {}, "config": {}, "seconds": 75.0, **fields}
    return Record(schema=1, study="study", stage=stage, name=name, status=status, fingerprint="0" * 64, inputs={}, **content)


RECORDS = {
    item.id: item
    for item in (
        record("pretrain/ib-bert-large", curves={"train_loss": [(0, 6.0), (10, 3.0)]}, config={"seed": 7}),
        record(
            "finetune/mobilebert/sst2",
            metrics={"accuracy": 0.75, "majority": 0.51},
            curves={"seed0_<loss": [(0, 0.7), (9, 0.1)], "seed1_loss": [(0, 0.6), (9, 0.2)]},
            details={"shares": {"validation": [0.25, 0.75]}},
            config={"seeds": [0, 1]},
            labels=("synthetic <rows>",),
        ),
        record("finetune/mobilebert/rte", "diverged", reason="loss nan at <step> 3"),
    )
}


@pytest.fixture(scope="module")
def html():
    return render(STUDY, (), RECORDS, fill(STUDY, RECORDS), expectations(STUDY.expect, RECORDS))


@pytest.fixture(scope="module")
def page(html):
    return read(html)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """Return the page of committed records, to which one log was added, and its folder."""
    folder = tmp_path_factory.mktemp("records")
    shutil.copytree(COMMITTED, folder / "cpu")
    log = folder / "cpu" / "logs" / "finetune" / "mobilebert" / "sst2.log"
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1\n")
    from_records(folder / "cpu", folder / "page & more")
    return read((folder / "page & more" / "index.html").read_text()), folder / "page & more"


def test_the_page_loads_nothing_from_elsewhere(html, page):
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not {"link", "img", "iframe", "object", "embed"} & {element.tag for element in page.all()}
    assert not any("src" in element.attributes for element in page.all())
    (policy,) = [meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes]
    assert "default-src 'none'" in policy


def test_only_the_page_s_own_script_may_run(html, page):
    (policy,) = [meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes]
    (script,) = page.all("script")
    code = html.partition("<script>")[2].partition("</script>")[0]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy
    assert not script.attributes
    assert not any(name.startswith("on") for element in page.all() for name in element.attributes)


def test_ids_are_unique_and_every_reference_has_one(page):
    known = ids(page)
    assert len(known) == len(set(known))
    for element in page.all():
        for name in ("popovertarget", "aria-labelledby"):
            assert element.attributes.get(name, known[0]) in known
        if element.attributes.get("href", "").startswith("#"):
            assert unquote(element.attributes["href"][1:]) in known


def test_text_of_studies_and_records_is_escaped(html):
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "a &lt; b &amp; c" in html
    assert "synthetic &lt;rows&gt;" in html
    assert "loss nan at &lt;step&gt; 3" in html
    assert "<loss" not in html


def test_the_page_has_every_part(html, page):
    text = page.text
    parts = {"headline", "expectations", "tables", "figures", "records", "environment"}
    assert parts | {f"table-{number}" for number in range(1, 10)} <= set(ids(page))
    assert "0 of 1 hold" in text
    assert "0.7500 is not above 0.8000" in text
    assert "validation: 25% / 75%" in text
    assert "1 min 15 s" in text
    assert 'lang="en"' in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_headings_never_skip_a_level(page):
    levels = [int(element.tag[1]) for element in page.all() if element.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_every_cell_leads_to_its_record_its_command_and_its_log(committed):
    page, folder = committed
    cells = [element for element in page.all("td") if element.attributes.get("id", "").startswith("cell-")]
    assert len(cells) == 68 + 80 + 126  # measured, not run, computed
    ran = 0
    for cell in cells:
        (facts,) = [element for element in cell.all("div") if "popover" in element.attributes]
        (button, *_) = cell.all("button")
        assert button.attributes["popovertarget"] == facts.attributes["id"]
        (command, *_) = facts.all("code")
        assert command.text.startswith(("snakemake --cores 1 ", "mobilebert describe "))
        assert any("data-copy" in element.attributes for element in facts.all("button"))
        links = [element.attributes["href"] for element in facts.all("a")]
        files = [link for link in links if link.startswith(".")]
        assert all((folder / unquote(link)).is_file() for link in files)
        if files:
            ran += 1
            assert any(link.startswith("#record-") for link in links)
            assert "no log kept" in facts.text or any(link.endswith(".log") for link in files)
        elif "mobilebert describe" in command.text:
            assert "computed from the configuration" in facts.text
        else:
            assert "no current record, no log" in facts.text
            assert "not run" in cell.text
    assert ran >= 54  # cells that `cpu` measured
    logged = [element for element in page.all("a") if element.attributes.get("href", "").endswith("sst2.log")]
    assert (folder / unquote(logged[0].attributes["href"])).read_text() == "epoch 1\n"


def test_a_page_of_a_finished_study_is_small_and_its_references_resolve(committed):
    page, folder = committed
    assert (folder / "index.html").stat().st_size < 5e6
    known = ids(page)
    assert len(known) == len(set(known))
    links = [element.attributes["href"] for element in page.all("a")]
    assert all(unquote(link[1:]) in known for link in links if link.startswith("#"))
    assert {link[0] for link in links} == {"#", "."}


def test_a_table_alone_is_a_page_with_commands_and_without_broken_links():
    for filled in fill(STUDY, RECORDS):
        page = read(render_table(filled, "study"))
        known = ids(page)
        links = [element.attributes["href"] for element in page.all("a")]
        assert all(link.startswith("#") and unquote(link[1:]) in known for link in links)
        assert "96.0" not in page.text
        assert by_id(page, f"table-{filled.number}").text.startswith(f"Table {filled.number}")


def test_a_page_without_files_beside_it_says_so_and_still_leads_to_the_record(page):
    facts = by_id(page, "cell-8-3-4-facts")
    assert [link.attributes["href"] for link in facts.all("a")] == ["#record-finetune/mobilebert/sst2"]
    assert "no file and no log beside this page" in facts.text
    assert not [link for link in page.all("a") if link.attributes["href"].startswith(".")]


def test_an_empty_study_has_a_page_that_says_so():
    page = read(render(STUDY, (), {}, fill(STUDY, {}), []))
    text = page.text
    assert "Nothing has been measured yet." in text
    assert "No job has ended yet." in text
    assert "This study states none." in text
    assert "0 of 0 judged" in text
    assert not list(page.all("svg"))


def test_an_edited_record_is_named_and_has_no_value():
    page = read(render(STUDY, (), {}, fill(STUDY, {}, ["finetune/mobilebert/sst2"]), [], ["finetune/mobilebert/sst2"]))
    row = by_id(page, "record-finetune/mobilebert/sst2")
    assert "edited: changed after it was written" in row.text
    assert "without a value here: finetune/mobilebert/sst2" in page.text


def test_kinds_of_labels_are_said_once():
    assert kinds(["scaled: widths / 8", "subset (train): 8 rows", "scaled: a corpus"]) == "scaled, subset"


def test_records_of_the_page_are_those_committed(committed):
    page, _ = committed
    for path in COMMITTED.rglob("result.json"):
        content = json.loads(path.read_text())
        name = f"{content['stage']}/{content['name']}" if content["name"] else content["stage"]
        if content["stage"] not in ("report", "check", "track"):
            assert content["fingerprint"] in by_id(page, f"record-{name}").text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3725, "1 h 2 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def luminance(colour):
    """Return WCAG's relative luminance of "#rgb" or "#rrggbb"."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * sign for sign in colour[1:])
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_and_lines_stand_out_from_the_page(html, scheme):
    """WCAG AA asks for a contrast of 4.5 for words and 3 for lines."""
    block = html.split(":root {")[scheme + 1].partition("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", block))
    for ground in ("paper", "raised"):
        for name in ("ink", "soft", "link", "good", "near", "bad", "muted", *(f"s{number}" for number in range(8))):
            light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= (3 if name.startswith("s") and name != "soft" else 4.5), (name, ground)
