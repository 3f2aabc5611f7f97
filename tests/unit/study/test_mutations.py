"""A study's file changed at random gives a usable study, or is refused in one short line."""

import copy
import random
from pathlib import Path

import pytest
import yaml

from mobilebert.reporting.plan import plan
from mobilebert.study import file as study_file
from mobilebert.study.graph import add_views, build_graph, jobs_in_scope, table_jobs
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
FILES = sorted(Path(__file__).parents[3].glob("workflows/config/*.yaml"))
# Values that people write by mistake or that break programs: other types, extremes, text that YAML
# reads otherwise.
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1000, 10**6, 10**9, 10**15, 10**16, 10**400, -(10**400), 0.0, 0.5, 1.0, -0.5, 1e308),
    *(
        float("inf"),
        float("-inf"),
        float("nan"),
        "",
        " ",
        "all",
        "none",
        "paper",
        "1",
        "1e-4",
        "cpu",
        "cuda",
        "bf16",
        "a\nb",
        "\0",
    ),
    *(
        "\u2028",
        "é" * 50,
        "x" * 5000,
        "{x}",
        "../..",
        "local:",
        "local:/\n",
        "hub",
        "synthetic",
        "mobilebert",
        "bag-of-embeddings",
    ),
    *("search-a", "sst2", "squad_v1.1", "squad_v2.0", "stsb", "onnxruntime", "data:vocab_size", "latency:x", ":", ",:x"),
    *("finetune/mobilebert/sst2:acuracy", "finetune/mobilebert/sst2:accuracy", "distill/mobilebert:heldout_mlm_loss"),
    *(
        [],
        {},
        [None],
        [1],
        [0, 0],
        [[]],
        ["sst2"],
        ["squad_v1.1"],
        ["cola"],
        ["x" * 90] * 170,
        ["mobilebert"],
        [0.0] * 4,
        [-1.0] * 4,
    ),
    *({"a": 1}, {"bag-of-embeddings": "all"}, {"bag-of-embeddings": ["squad_v1.1"]}, {"mobilebert": "all"}, {1: 2}, {None: 1}),
    *({"x": {"source": "./x"}}, [{"what": "w", "metric": "data:vocab_size", "above": 1, "reason": "r"}], {"sst2": {"epochs": 0}}),
)
KEYS = (
    "",
    "x",
    "seed",
    "steps",
    "schema",
    "models",
    "bag-of-embeddings",
    "mobilebert",
    "y" * 300,
    "a.b",
    "\n",
    1,
    None,
    True,
    2.5,
)


def places(value, path=()):
    """Yield the path of every value in a study."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def mutated(draw: random.Random, content: dict) -> dict:
    """Return the content with one to three values replaced, removed, renamed, doubled or moved."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        every = [path for path in places(content) if path]
        *above, last = draw.choice(every)
        holder = content
        for key in above:
            holder = holder[key]
        how = draw.choice(("replace", "replace", "nudge", "nudge", "scale", "remove", "rename", "move"))
        if how == "remove":
            del holder[last]
        elif how == "rename" and isinstance(holder, dict):
            holder[draw.choice(KEYS)] = holder.pop(last)
        elif how == "scale" and isinstance(holder[last], int | float):
            holder[last] *= draw.choice((-1, 0, 2, 3, 0.5, 1000, 10**9))
        elif how == "nudge" and isinstance(holder[last], int | float):
            holder[last] = not holder[last] if isinstance(holder[last], bool) else holder[last] + draw.choice((-1, 1, 2))
        elif how == "move":
            value = content
            for key in draw.choice(every):
                value = value[key] if isinstance(value, dict | list) and (isinstance(value, list) or key in value) else None
            holder[last] = copy.deepcopy(value)
        else:
            holder[last] = copy.deepcopy(draw.choice(VALUES))
    return content


@pytest.fixture(autouse=True)
def one_code_hash(monkeypatch):
    monkeypatch.setattr("mobilebert.study.code_hash.code_hash", lambda stage: "")


def outcome(file: Path) -> str | None:
    """Return the refusal of the study, or None if plan, graph and scope accept it."""
    try:
        study = load_study(file)
        graph = build_graph(study)
    except UserError as error:
        return str(error)
    assert plan(study, graph, "h100").count("\n") > 5
    add_views(study, graph)
    assert {*graph} >= {*jobs_in_scope(study, graph), "report", "track", "check"}
    for number in range(1, 10):
        assert {*graph} >= {*table_jobs(study, graph, number)}
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_changed_study_works_or_is_refused_in_one_line(tmp_path, file):
    draw, content, changed = random.Random(f"1 {file.stem}"), study_file.read(file), tmp_path / "mine.yaml"
    refused = 0
    for _ in range(40):
        changed.write_text(yaml.dump(mutated(draw, content), Dumper=DUMPER, allow_unicode=True))
        line = outcome(changed)
        if line is not None:
            refused += 1
            assert line.isprintable(), line
            assert "mine" in line, line
            assert len(line) < 300 + len(str(changed)), line
    assert 10 < refused < 40  # some changes are harmless, most are not
