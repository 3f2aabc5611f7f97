"""Sealed records of one study, and the printed lines of a table that they fill."""

from mobilebert import paper
from mobilebert.jobs.record import Record
from mobilebert.reporting.formats import markdown
from mobilebert.reporting.tables import fill_table
from mobilebert.study.schema import Study

STUDY = Study(schema=1, description="the paper")


def record(key, status="ok", labels=(), samples=None, config=None, **metrics):
    stage, _, name = key.partition("/")
    made = Record(
        schema=1, study="study", stage=stage, name=name, status=status, fingerprint="f", config=config or {}, inputs={},
        labels=labels, metrics=metrics, samples=samples or {},
    )  # fmt: skip
    made._seal = "sealed"
    return made


def of(*items):
    return {item.id: item for item in items}


def lines(number, records, study=STUDY):
    return markdown([fill_table(paper.table(number), study, records)]).splitlines()


def line(number, label, records, study=STUDY):
    (found,) = [text for text in lines(number, records, study) if text.startswith(f"| {label} | measured |")]
    return [cell.strip() for cell in found.split(" | ")[2:]]
