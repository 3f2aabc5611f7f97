"""The report page in headless Chromium: layout, keyboard, accessibility, no network.

`make test-page` installs what it needs (tests/page/install.sh). Without it every test is skipped.
"""

import json
import os
import shutil
import sys
from base64 import b64encode
from contextlib import closing
from pathlib import Path

import pytest

from mobilebert.jobs.record import sealed
from mobilebert.reporting.page import render
from mobilebert.reporting.tables import fill
from mobilebert.stages.report import from_records
from mobilebert.study.schema import Study

COMMITTED = Path(__file__).parents[2] / "reports" / "cpu"
AXE = Path(sys.prefix) / "axe" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WIDTHS = (390, 768, 1024, 1440)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
EVEN = {"1": [[[1 / 16] * 16] * 16] * 4}
ATTENTION = {
    **{"schema": 1, "study": "cpu", "stage": "attention", "name": "mobilebert", "status": "ok", "fingerprint": "0" * 64},
    **{"config": {}, "inputs": {}},
    "attention": {
        "tokens": ["[MASK]"] * 16,
        "maps": [{"model": "control-shuffled-teacher", "weights": "initial", "layers": EVEN}] * 2,
    },
}
LONG = "an_expectation_without_a_single_space_" * 12

selenium = pytest.importorskip("selenium", reason="Selenium is not installed; run: tests/page/install.sh")
missing = [name for name, found in (("Chromium", CHROMIUM), ("chromedriver", DRIVER), ("axe-core", AXE.is_file())) if not found]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed; run: tests/page/install.sh")


class Browser:
    """A page in Chromium."""

    def __init__(self, driver, page):
        self.driver, self.page = driver, page

    def open(self, width=1440, height=900, scheme="light"):
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(self.page.as_uri())
        return self

    def js(self, code, *values):
        return self.driver.execute_script(code, *values)

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def problems(self, place="html"):
        """Return axe-core's serious and critical findings: rule, and the first element."""
        self.js(AXE.read_text())
        found = self.driver.execute_async_script("axe.run(arguments[0]).then(arguments[1])", place)["violations"]
        return [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in ("serious", "critical")]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(DRIVER, env={**os.environ, "SE_OFFLINE": "true"})
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Return the pages: of committed records with a log, and of a study that has not run."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(COMMITTED, folder / "cpu")
    log = folder / "cpu/logs/finetune/mobilebert/sst2.log"
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1\n")
    maps = folder / "cpu/attention/mobilebert/result.json"
    maps.parent.mkdir(parents=True, exist_ok=True)
    maps.write_text(json.dumps(sealed(ATTENTION)))
    from_records(folder / "cpu", folder / "committed")
    study = Study(schema=1, description=LONG)
    empty = folder / "empty.html"
    empty.write_text(render(study, (), {}, fill(study, {}), []))
    return {"committed": folder / "committed/index.html", "empty": empty}


@pytest.fixture(params=["committed", "empty"])
def browser(request, driver, pages):
    return Browser(driver, pages[request.param])


@pytest.fixture
def committed(driver, pages):
    return Browser(driver, pages["committed"]).open()


CELL = "#table-8 ~ .wide td button"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(browser, width):
    browser.open(width)
    assert browser.js("return document.documentElement.scrollWidth") <= browser.js("return document.documentElement.clientWidth")
    browser.js("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert browser.js("return document.documentElement.scrollWidth") <= browser.js("return document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_serious(browser, width, scheme):
    browser.open(width, scheme=scheme)
    browser.js("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert browser.problems() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_facts_of_a_cell(committed, scheme):
    committed.open(390, scheme=scheme)
    for target in (CELL, "#records ~ .wide td button"):
        committed.js("document.querySelector(arguments[0]).click()", target)
        assert committed.js("return document.querySelectorAll(':popover-open').length") == 1
        assert committed.problems(":popover-open") == []


def test_light_and_dark_follow_the_reader(browser):
    found = {scheme: browser.open(scheme=scheme).js("return getComputedStyle(document.body).backgroundColor") for scheme in
             ("light", "dark")}  # fmt: skip
    light, dark = (sum(map(int, found[name][4:-1].split(","))) for name in ("light", "dark"))
    assert light > 600
    assert dark < 150


def test_the_page_asks_for_itself_alone_and_nothing_is_refused(browser):
    browser.driver.get_log("performance")
    browser.driver.get_log("browser")
    browser.open(390)
    sent = [json.loads(line["message"])["message"] for line in browser.driver.get_log("performance")]
    asked = {item["params"]["request"]["url"] for item in sent if item["method"] == "Network.requestWillBeSent"}
    assert asked == {browser.page.as_uri()}
    assert browser.driver.get_log("browser") == []


def test_the_answer_and_every_count_are_on_the_first_screen(browser):
    for width, height in ((390, 844), (1440, 900)):
        browser.open(width, height)
        assert browser.js("return document.querySelector('.cards').getBoundingClientRect().bottom") <= height


def test_a_cell_opens_and_closes_by_keyboard(committed):
    from selenium.webdriver.common.keys import Keys

    committed.js("document.querySelector(arguments[0]).focus()", CELL)
    committed.press(Keys.ENTER)
    text = committed.js("return document.querySelector(':popover-open').innerText")
    assert text.startswith("Table 8, AKT, MNLI-m")
    committed.press(Keys.TAB)
    assert committed.js("return document.querySelector(':popover-open').contains(document.activeElement)")
    committed.press(Keys.ESCAPE)
    assert committed.js("return document.querySelector(':popover-open')") is None
    assert committed.js("return document.activeElement === document.querySelector(arguments[0])", CELL)


def test_every_control_is_reached_by_tab_and_shows_its_focus(committed):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(40):
        committed.press(Keys.TAB)
        reached.append(
            committed.js("return [document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]")
        )
    assert reached[0][0] == "A"
    assert {"A", "SUMMARY", "DIV"} <= {tag for tag, _ in reached}  # links, claims, tables that scroll
    assert all(outline != "none" for _, outline in reached)


def test_the_command_of_a_cell_is_copied(committed):
    committed.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    committed.js("document.querySelector(arguments[0]).click()", CELL)
    button = committed.driver.find_element("css selector", ":popover-open [data-copy]")
    button.click()
    command = committed.js("return document.querySelector(':popover-open code').textContent")
    copied = committed.driver.execute_async_script("navigator.clipboard.readText().then(arguments[arguments.length - 1])")
    assert copied == command
    assert command.startswith("snakemake --cores 1 results/cpu/finetune/mobilebert-akt/mnli/result.json")
    assert button.text == "copied"


def test_a_link_to_a_record_closes_the_facts_and_shows_the_record(committed):
    cell = "[popovertarget='cell-8-3-4-facts']"
    committed.js("document.querySelector(arguments[0]).click()", cell)
    committed.driver.find_element("css selector", ":popover-open a[href^='#record-']").click()
    assert committed.js("return document.querySelector(':popover-open')") is None
    assert committed.js("return document.querySelector(':target').id") == "record-finetune/mobilebert/sst2"
    top = committed.js("return document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= top < 900


def test_the_log_of_a_cell_opens(committed):
    committed.js("document.querySelector(\"[popovertarget='cell-8-3-4-facts']\").click()")
    link = committed.driver.find_element("link text", "log").get_attribute("href")
    assert link.endswith("cpu/logs/finetune/mobilebert/sst2.log")


@pytest.mark.parametrize("kind", ["data", "file"])
def test_a_frame_has_no_dead_link(committed, tmp_path, kind):
    """Snakemake's report.html holds the page as a data URI, its report.zip as a file; both without
    the records."""
    copy = tmp_path / "copy.html"
    shutil.copy(committed.page, copy)
    uri = copy.as_uri() if kind == "file" else f"data:text/html;base64,{b64encode(copy.read_bytes()).decode()}"
    count = "return document.querySelectorAll(arguments[0]).length"
    files, places = "a:not([href^='#'])", "a[href^='#']"
    assert committed.js(count, files) > 50
    known = committed.js(count, places)
    committed.page = tmp_path / "report.html"
    committed.page.write_text(f"<iframe width=1000 height=800 src='{uri}'></iframe>")
    committed.open().driver.switch_to.frame(0)
    assert committed.js(count, files) == 0
    assert committed.js(count, places) == known
    assert "result.json, no log kept" in committed.js("return document.querySelector('#records ~ .wide').textContent")


@pytest.mark.parametrize("section", ["headline", "table-4", "records"])
@pytest.mark.parametrize("width", [390, 1440])
def test_heads_and_names_stay_in_sight(committed, section, width):
    """The heads stay when a table scrolls down, the names of rows when it scrolls sideways."""
    committed.open(width, 500)
    box = f"document.querySelector('#{section} ~ .wide')"
    committed.js(f"{box}.scrollIntoView(); {box}.scrollTo(120, 400)")
    moved = committed.js(f"return [{box}.scrollTop, {box}.scrollLeft]")
    frame = committed.js(f"return {box}.getBoundingClientRect().toJSON()")
    head = committed.js(f"return {box}.querySelector('thead th').getBoundingClientRect().toJSON()")
    name = committed.js(f"return {box}.querySelector('tbody th').getBoundingClientRect().toJSON()")
    assert moved[0] > 0
    assert abs(head["top"] - frame["top"]) <= 2
    assert abs(name["left"] - frame["left"]) <= 2
    assert width == 1440 or moved[1] > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_attention_maps_show_in_both_schemes_and_have_a_text(committed, scheme):
    committed.open(390, scheme=scheme)
    drawing = "#attention ~ .panels svg"
    label = committed.js("return document.querySelector(arguments[0]).getAttribute('aria-label')", drawing)
    assert label.endswith("control-shuffled-teacher, the teacher; control-shuffled-teacher, before its first step 0.00 off")
    colour = committed.js("return getComputedStyle(document.querySelector(arguments[0])).fill", f"{drawing} .cell")
    paper = committed.js("return getComputedStyle(document.body).backgroundColor")
    ink, ground = (sum(map(int, text[4:-1].split(","))) for text in (colour, paper))
    assert abs(ink - ground) > 400
    names = f"return [...document.querySelectorAll('{drawing} text.name')].map((one) => one.getBoundingClientRect().toJSON())"
    boxes = committed.js(names)
    assert all(box["left"] >= 0 and box["right"] <= 390 for box in boxes)


def test_without_scripts_the_facts_open_too(committed):
    committed.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    with closing(_Scripts(committed.driver)):
        committed.open()
        committed.driver.find_element("css selector", CELL).click()
        assert committed.driver.find_element("css selector", "#cell-8-1-1-facts code").is_displayed()


class _Scripts:
    """Switch scripts on again when closed."""

    def __init__(self, driver):
        self.driver = driver

    def close(self):
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
