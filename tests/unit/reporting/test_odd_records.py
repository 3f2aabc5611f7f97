"""Records with a right fingerprint and checksum but odd fields: no view ends with a traceback."""

import copy
import itertools
import json
from pathlib import Path

import pytest

from mobilebert.jobs.freshness import record_file
from mobilebert.jobs.record import read_record, sealed
from mobilebert.reporting.formats import markdown
from mobilebert.reporting.page import render
from mobilebert.reporting.tables import counts, fill
from mobilebert.reporting.tracking import ingest
from mobilebert.reporting.verdicts import expectations
from mobilebert.study.job import Graph, Job
from mobilebert.study.schema import Study
from mobilebert.study.sections import Expectation
from mobilebert.util.errors import UserError

REAL = Path(__file__).parents[3] / "reports" / "cpu"
VIEWS = ("report", "track", "check")
MISSING = object()
ODD = (MISSING, None, "a\n<b>$\\x$", [], [None, "x", [1]], {}, {"../x": [1]}, -1, 1e308, 10**400)
READ = {"seeds", "seed", "engines", "threads", "length", "statuses", "summary", "shares", "added"}  # in config and details
SCORED = ("finetune", "quantize", "latency")
STUDY = Study(
    schema=1,
    description="odd records",
    expect=(
        Expectation(what="w", metric="finetune/mobilebert/sst2:accuracy", above="latency:mobilebert/pytorch:p50_ms", reason="r"),
    ),
)


def real_records():
    """Return the committed records, their curves cut to a few points that still show the same."""
    found = []
    for file in sorted(REAL.rglob("result.json")):
        content = json.loads(file.read_text())
        if content["stage"] not in VIEWS:
            content["curves"] = {name: points[:3] for name, points in list(content["curves"].items())[:2]}
            found.append(content)
    return found


def paths(content):
    """Yield the path of every field, of the keys that views read in it, and of one unknown key."""
    kept = ("stage", "name", "fingerprint", "schema")  # a change of these makes it another job's record
    for field, value in content.items():
        if field not in kept:
            yield (field,)
            if isinstance(value, dict):
                shown = field in ("metrics", "samples") and content["stage"] in SCORED
                yield from ((field, key) for key in (*value, "added") if shown or key in READ)


def mutated(content, path, value):
    changed = copy.deepcopy(content)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if value is MISSING:
        holder.pop(path[-1], None)
    else:
        holder[path[-1]] = value
    return sealed(changed)


def mutations(contents):
    """Yield (number of the record, path, value): every odd value once for every field. Fields that
    cells are made of get every value once a stage. The mutations are spread over the records."""
    seen = {}
    for number, content in enumerate(contents):
        for path in paths(content):
            apart = (
                content["stage"] if content["stage"] in SCORED and path[0] in ("metrics", "samples", "details", "config") else ""
            )
            seen.setdefault((apart, path), []).append(number)
    for (place, ((_, path), numbers)), (turn, value) in itertools.product(enumerate(seen.items()), enumerate(ODD)):
        yield numbers[(place + turn) % len(numbers)], path, value


def write(results, content, text, name=None):
    job = Job(content["stage"], content["name"] if name is None else name, content["config"], (), content["fingerprint"])
    file = record_file(results, "study", job)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return job


def read(folder, content, changed):
    """Return the record as a view reads it from its file, or None if it is refused."""
    job = write(folder, content, json.dumps(changed))
    try:
        record = read_record(record_file(folder, "study", job))
    except UserError:
        return None
    assert record.seal == "sealed"
    return record


@pytest.fixture(scope="module")
def contents():
    return real_records()


@pytest.fixture(scope="module")
def odd(contents, tmp_path_factory):
    """Return number of a record -> its mutations that load as records."""
    folder, found = tmp_path_factory.mktemp("odd"), {}
    for number, path, value in mutations(contents):
        record = read(folder, contents[number], mutated(contents[number], path, value))
        if record:
            found.setdefault(number, []).append((path, value, record))
    return found


def test_tables_and_verdicts_take_any_record(contents, odd, tmp_path):
    """All records are mutated at once, each in another way; a failure names the mutations."""
    whole = {item.id: item for item in (read(tmp_path, content, sealed(content)) for content in contents)}
    assert len(odd) > 30
    for turn in itertools.zip_longest(*odd.values()):
        mixed = whole | {item[2].id: item[2] for item in turn if item}
        try:
            markdown(fill(STUDY, mixed))
            expectations(STUDY.expect, mixed)
        except Exception as error:  # name the mutations that were tried
            pytest.fail(f"{error!r}: {[(item[2].id, item[0], item[1]) for item in turn if item]}")


def test_the_page_takes_any_record(odd):
    """A page takes a second to draw, so one page gets all odd records."""
    every = [item[2] for items in odd.values() for item in items]
    given = {f"{record.stage}/{number}": record for number, record in enumerate(every)}
    curves = {key: record for key, record in given.items() if not key.startswith("finetune/") or record.curves == {}}
    html = render(STUDY, (), curves, fill(STUDY, {}), [])
    assert html.count('<tr id="record-') == len(curves) > 200


def test_mlflow_takes_any_record(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    graph, found, said = Graph(), {}, []
    every = [item for items in odd.values() for item in items]
    told = {
        path: item
        for path, *item in every
        if path[0] in ("metrics", "samples", "curves", "started", "seconds", "labels", "artefacts")
    }
    for number, (_, record) in enumerate(
        [*told.values(), *((value, record) for path, value, record in every if path == ("config",))]
    ):
        name = f"m{number}/odd"
        record = record.model_copy(update={"name": name, "stage": "finetune", "fingerprint": f"{number:064d}"})
        graph[record.id] = Job("finetune", name, {}, (), record.fingerprint)
        found[record.id] = record
        folder = tmp_path / "results/study/finetune" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(str(number))
        (folder / "runs.jsonl").write_text('{"run": 1}\n[]\n{"run": "seed0"}\n\x00\nnonsense')
    assert len(found) > 20
    assert ingest(tmp_path / "results", STUDY, graph, found, lambda: counts([]), say=said.append)["added"] == len(found)
    assert len(said) == len(found)  # one line for every damaged runs.jsonl
