"""Damaged tables of every task: read as meant, or refused in one line that names the file."""

import hashlib
import json
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outside import ROWS, one_line_of, table

from mobilebert.data.sources import open_source
from mobilebert.study.tasks import TASKS
from mobilebert.util.errors import UserError


def changed(name, values):
    """Return a mutation that gives a column other values, or a function of the old ones."""

    def change(found, column):
        new = values(found[column]) if callable(values) else values
        return found.set_column(found.schema.names.index(column), column, new if isinstance(new, pa.Array) else pa.array(new))

    change.__name__ = name
    return change


def doubled(found, column):
    return found.append_column(column, found[column])


def dropped(found, column):
    return found.drop_columns(column)


def indexed(found, column):
    """Let pandas' metadata name an index that is not in the file."""
    return found.replace_schema_metadata(
        {"pandas": json.dumps({"index_columns": ["absent"], "columns": [], "column_indexes": []})}
    )


def beside(found, column):
    return found.append_column("more", pa.array([[{"a": 1}]] * ROWS))


def column_of(array):
    return array.combine_chunks()


ACCEPTED = [indexed, beside]
ACCEPTED_TEXT = [
    changed("large", lambda old: column_of(old).cast(pa.large_string())),
    changed("categorical", lambda old: column_of(old).dictionary_encode()),
    changed("empty texts are text", lambda old: column_of(old)),
]
ACCEPTED_NUMBER = [
    changed("small", lambda old: column_of(old).cast(pa.int32() if pa.types.is_integer(old.type) else pa.float32())),
    changed("categorical number", lambda old: column_of(old).dictionary_encode()),
]
REFUSED = [
    doubled,
    dropped,
    changed("nulls", [None] * ROWS),
    changed("structs", [{"a": 1}] * ROWS),
    changed("lists", [[1]] * ROWS),
]
REFUSED_TEXT = [
    changed("one null", lambda old: [*old.to_pylist()[1:], None]),
    changed("numbers", range(ROWS)),
    changed("bytes", [b"x"] * ROWS),
    changed("not UTF-8", lambda old: pa.Array.from_buffers(pa.string(), ROWS, pa.array([b"caf\xe9"] * ROWS).buffers())),
]
REFUSED_NUMBER = [
    changed("one missing", lambda old: [*old.to_pylist()[1:], None]),
    changed("decimals", lambda old: pa.array([0] * ROWS).cast(pa.decimal128(20, 1))),
    changed("times", lambda old: pa.array([0] * ROWS, pa.timestamp("us"))),
    changed("truths", [True, False] * (ROWS // 2)),
    changed("texts", ["0"] * ROWS),
    changed("not a number", [float("nan")] * ROWS),
    changed("out of range", [7] * ROWS),  # an idx: six equal ones
]
REFUSED_ANSWERS = [
    changed("text alone", ["b"] * ROWS),
    changed("list of structs", [[{"text": "b", "answer_start": 2}]] * ROWS),
    changed("no text", [{"answer_start": [2]}] * ROWS),
    changed("no starts", [{"text": ["b"]}] * ROWS),
    changed("null start", [{"text": ["b"], "answer_start": [None]}] * ROWS),
    changed("null starts", [{"text": ["b"], "answer_start": None}] * ROWS),
    changed("null text", [{"text": [None], "answer_start": [2]}] * ROWS),
    changed("one start", [{"text": ["b"], "answer_start": 2}] * ROWS),
    changed("one text", [{"text": "b", "answer_start": [2]}] * ROWS),
    changed("fractional start", [{"text": ["b"], "answer_start": [2.5]}] * ROWS),
    changed("whole float", [{"text": ["b"], "answer_start": [2.0]}] * ROWS),
    changed("true start", [{"text": ["b"], "answer_start": [True]}] * ROWS),
    changed("more starts", [{"text": ["b"], "answer_start": [2, 2]}] * ROWS),
    changed("far start", [{"text": ["b"], "answer_start": [2**62]}] * ROWS),
    changed("negative start", [{"text": ["c"], "answer_start": [-1]}] * ROWS),
]


def sampled(task):
    """Return (column, mutation, whether it stays valid): all for answers, else a seeded sample."""
    found = [(column, *mutation) for column in task.columns for mutation in mutations(task, column)]
    answers = [item for item in found if item[1] in REFUSED_ANSWERS]
    others = [item for item in found if item[1] not in REFUSED_ANSWERS]
    return answers + random.Random(task.name).sample(others, 12)


def mutations(task, column):
    kind = task.columns[column]
    good, bad = list(ACCEPTED), list(REFUSED)
    if kind == "text":
        good, bad = good + ACCEPTED_TEXT, bad + REFUSED_TEXT
    elif kind == "answers":
        bad += REFUSED_ANSWERS
    else:
        good, bad = good + ACCEPTED_NUMBER, bad + REFUSED_NUMBER
    return [(change, True) for change in good] + [(change, False) for change in bad]


def damaged(path):
    """Damage a parquet file in several ways; yield after each."""
    content = path.read_bytes()
    for wrong in (b"", content[:40], content[:-9], content[:60] + b"\xff" * 40 + content[100:], b"PAR1" * 30):
        path.write_bytes(wrong)
        yield
    path.unlink()
    path.mkdir()
    yield


@pytest.mark.parametrize("name", TASKS)
def test_a_mutated_table_is_read_as_meant_or_refused_in_one_line(name, tmp_path, capsys):
    task, role = TASKS[name], "test" if name == "ax" else "validation"
    path = tmp_path / task.folder / f"{task.splits[role]}.parquet"
    path.parent.mkdir(parents=True)
    pinned = tmp_path / "SHA256SUMS"
    predictions = tmp_path / ("p.json" if task.is_squad else "p.tsv")
    keys = [f"q{row}" for row in range(ROWS)]
    predictions.write_text(
        json.dumps(dict.fromkeys(keys, "b"))
        if task.is_squad
        else "idx\tprediction\n" + "".join(f"{row}\t0\n" for row in range(ROWS))
    )
    pq.write_table(table(task), path)
    commands = {
        "score": ["score", "--task", name, "--data", tmp_path, "--predictions", predictions],
        "evaluate": ["evaluate", "/nowhere/model", "--task", name, "--data", tmp_path],
        "predict": ["predict", "/nowhere/model", "--task", name, "--input", path],
    }
    if name == "ax":
        commands["score"] += ["--split", "test"]

    def outcomes():
        pinned.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tmp_path)}\n")
        try:
            frame = open_source(f"local:{tmp_path}").table(name, task.splits[role])
            line = None
        except UserError as error:
            frame, line = None, str(error)
            assert "\n" not in line
            assert str(path) in line
        pinned.unlink()
        return frame, line, {command: one_line_of(capsys, path, given) for command, given in commands.items()}

    original, line, lines = outcomes()
    assert line is None
    assert lines["score"] is None
    assert "/nowhere/model" in lines["evaluate"]
    assert "/nowhere/model" in lines["predict"]
    for column, change, good in sampled(task):
        pq.write_table(change(table(task), column), path)
        frame, line, lines = outcomes()
        what = (column, change.__name__, line, lines)
        assert (line is None) == good, what
        assert (lines["score"] is None) == good, what
        assert ("/nowhere/model" in lines["evaluate"]) == good, what
        assert "/nowhere/model" in lines["predict"] or not good, what
        if good:
            pd.testing.assert_frame_equal(frame, original, check_dtype=False)
    pq.write_table(table(task), path)
    for _ in damaged(path):
        if path.is_file():
            assert outcomes()[1] is not None
        for given in commands.values():
            assert "/nowhere/model" not in one_line_of(capsys, path, given)
