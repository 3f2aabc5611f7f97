"""Records with nothing but what a test sets."""

from mobilebert.jobs.record import Record


def record(key, status="ok", **fields):
    stage, _, name = key.partition("/")
    content = {"metrics": {}, "config": {}, **fields}
    return Record(schema=1, study="study", stage=stage, name=name, status=status, fingerprint="0" * 64, inputs={}, **content)


def of(*records):
    return {item.id: item for item in records}
