"""Build small tables of every task, and run commands that must be refused."""

import pyarrow as pa

from mobilebert.cli.main import main

ROWS = 6


def table(task):
    """Return a small labelled table of the task, as an Arrow table without pandas' metadata."""
    if task.is_squad:
        answers = [{"text": ["b"], "answer_start": [2]}] * ROWS
        columns = {"id": [f"q{row}" for row in range(ROWS)], "title": ["t"] * ROWS, "context": ["a b c"] * ROWS}
        return pa.table({**columns, "question": ["q"] * ROWS, "answers": answers})
    labels = [0.5 * row for row in range(ROWS)] if task.is_regression else [row % task.num_labels for row in range(ROWS)]
    texts = {name: [f"{name} {row}" for row in range(ROWS)] for name in task.text_columns}
    return pa.table({**texts, "label": labels, "idx": list(range(ROWS))})


def one_line_of(capsys, path, arguments):
    """Return the error line of a command that was refused, or None if it ran."""
    code = main([str(item) for item in arguments])
    found = capsys.readouterr()
    if code == 0:
        return None
    assert code == 2
    (line,) = found.err.splitlines()
    assert line.startswith("mobilebert: ")
    assert str(path) in line or "/nowhere/model" in line
    return line
