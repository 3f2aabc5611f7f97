"""Write the gate's rows in the formats of CI services: JUnit, and Markdown for a job's summary."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from mobilebert.compare.gate import GateRow
from mobilebert.compare.text import number, verdict
from mobilebert.util.text import markdown as escaped


def junit(rows: Sequence[GateRow], name: str) -> bytes:
    """Return JUnit's XML: a test case for each row, a failure for each that does not hold."""
    failed = sum(not row.holds for row in rows)
    suite = ElementTree.Element(
        "testsuite", name=_valid(name), tests=str(len(rows)), failures=str(failed), errors="0", skipped="0"
    )
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=_valid(row.what))
        line = f"{row.verdict}: {_valid(row.reason)}"
        if not row.holds:
            ElementTree.SubElement(case, "failure", message=line, type=row.verdict).text = _values(row)
        else:
            ElementTree.SubElement(case, "system-out").text = f"{line}; {_values(row)}"
    top = ElementTree.Element("testsuites")
    top.append(suite)
    return ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)


def summary(rows: Sequence[GateRow], name: str) -> str:
    """Return a Markdown table of the rows."""
    lines = [f"## {escaped(name)}", "", verdict(rows), "", "| verdict | metric or record | baseline | new | reason |"]
    lines.append("| --- | --- | --: | --: | --- |")
    for row in rows:
        cells = [row.verdict, escaped(row.what), number(row.base), number(row.new), escaped(row.reason)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _values(row: GateRow) -> str:
    return f"baseline {number(row.base)}, new {number(row.new)}"


def _valid(text: str) -> str:
    """Return the text without characters that XML cannot hold."""
    return "".join(sign for sign in text if sign.isprintable())
