"""The English of docstrings and comments keeps to a few rules that a machine can check."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("mobilebert/**/*.py"), *ROOT.glob("tests/**/*.py")])
# A sentence names its subject; these words open one that does not.
RIDDLES = r"(Of\b|As\b|Those\b|None where|None:|Both\.|Since this|Which|Whom?|What\b)"
# A function's docstring begins with a verb: "Return whether", not "Whether".
NO_VERB = (
    r"(A|All|An|And|Any|As|At|Both|Each|Every|For|From|How|If|In|It|None|Of|On|One|That|The|This|Those|Two|What|When|Where"
    r"|Whether|Which|Who|With)"
)
WIDTH = 100


def docstrings(tree):
    """Yield (line, text, whether it is a function's) of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text, isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def comments(source):
    """Yield (line, column, text) of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.start[1], token.string


def problems(file: Path) -> list[str]:
    source = file.read_text(encoding="utf-8")
    lines, found, is_test = source.splitlines(), [], "tests" in file.parts
    for line, text, of_function in docstrings(ast.parse(source)):
        first = re.split(r"\W", text, maxsplit=1)[0]
        if of_function and not is_test and re.fullmatch(NO_VERB, first):
            found.append(f"{line}: the docstring of a function begins with a verb, not {first!r}")
        found += [
            f"{line}: opens with a riddle: {part[:40]!r}" for part in re.split(r"(?<=[.:]) ", text) if re.match(RIDDLES, part)
        ]
        start = line - 1
        for number, row in enumerate(lines[start : start + text.count("\n") + 1], line):
            if len(row) > WIDTH:
                found.append(f"{number}: {len(row)} columns of prose, at most {WIDTH}")
    for line, column, text in comments(source):
        if re.match(rf"#:? {RIDDLES}", text):
            found.append(f"{line}: opens with a riddle: {text[:40]!r}")
        if len(lines[line - 1]) > WIDTH and not lines[line - 1][:column].strip():
            found.append(f"{line}: {len(lines[line - 1])} columns of prose, at most {WIDTH}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_docstrings_and_comments_keep_the_rules(file):
    assert not problems(file)
