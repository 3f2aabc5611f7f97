"""Any file in place of a study's is read, or refused within seconds in one line that names it."""

import os
import time

import pytest

from mobilebert.cli.main import main
from mobilebert.study import file as study_file
from mobilebert.study.file import DEEPEST, LARGEST_FILE, MOST_VALUES
from mobilebert.study.graph import build_graph
from mobilebert.study.load import load_study
from mobilebert.util.errors import UserError

HEAD = "schema: 1\ndescription: d\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


def refused(file) -> str:
    """Return the line with which the file is refused, within two seconds of processor time."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_study(file)
    assert time.process_time() - start < 2
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 300 + len(str(file))
    return line


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("seed: 2026-02-30\n", ["seed", "valid integer", "'2026-02-30'"]),
        ("seed: 2026-02-28\n", ["seed", "valid integer", "'2026-02-28'"]),
        ("seed: 0x_\n", ["line 3", "'0x_' is no value of the type int"]),
        ("seed: !!int x\n", ["line 3", "'x' is no value of the type int"]),
        ("seed: !!bool x\n", ["line 3", "'x' is no value of the type bool"]),
        ("seed: !!float x\n", ["line 3", "'x' is no value of the type float"]),
        ("seed: !!timestamp x\n", ["line 3", "'x' is no value of the type timestamp"]),
        ("seed: !!python/object:os.system x\n", ["line 3", "python/object"]),
        ("seed: !!binary aGk=\n", ["seed", "valid integer"]),
        ("seed: !!set {a, b}\n", ["seed", "valid integer"]),
        (f"seed: {'9' * 5000}\n", ["line 3", "is no value of the type int"]),
        (f"seed: 1{'0' * 400}\n", ["seed: integers from -2**53 to 2**53 are allowed"]),
        (f"seed: 0x{'f' * 9000}\n", ["seed: integers from -2**53 to 2**53 are allowed"]),
        (f"finetune: {{seeds: [0, 1{'0' * 30}]}}\n", ["finetune.seeds.1: integers from -2**53 to 2**53 are allowed"]),
        ("seed: 4294967296\n", ["seed", "less than 4294967296"]),
        ("finetune: {seeds: [4294967296]}\n", ["finetune.seeds", "below 4294967296"]),
        (f"a: {'[' * 3000}{']' * 3000}\n", ["line 3", f"more than {DEEPEST} levels"]),
        (f"a: {'{b: ' * 3000}1{'}' * 3000}\n", ["line 3", f"more than {DEEPEST} levels"]),
        (BOMB, [f"more than {MOST_VALUES:,} values"]),
        ("a: &a [*a]\n", ["alias 'a' lies inside itself"]),
        ("? [a, b]\n: 1\n", ["not YAML", "unhashable"]),
        ("? {a: b}\n: 1\n", ["not YAML", "unhashable"]),
        (f"{'k' * 300}: 1\n", ["kkk", "unknown key"]),
        (f"a: '{'x' * LARGEST_FILE}'\n", [f"more than the {LARGEST_FILE:,} bytes"]),
        ('data: {source: "local:\\ud800"}\n', ["data.source", "cannot be encoded as UTF-8"]),
        ('"\\udc00": 1\n', ["cannot be encoded as UTF-8"]),
        (f"data: {{source: synthetic, vocab_size: {2**53}}}\n", ["data.vocab_size", "is more than 1048576"]),
        (f"scale: {{max_position_embeddings: {10**12}}}\n", ["scale.max_position_embeddings", "is more than 65536"]),
        ("a: *b\n", ["line 3", "undefined alias"]),
        ("a: \0\n", ["not YAML"]),
        ("--- 1\n--- 2\n", ["not YAML"]),
    ],
)
def test_a_file_of_odd_values_is_refused(tmp_path, text, wanted):
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD + text)
    line = refused(file)
    for part in [str(file), *wanted]:
        assert part in line


def test_aliases_and_merge_keys_work(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(HEAD + "pretrain: &p {steps: 30, warmup_steps: 1, length: 64}\nsearch: {<<: *p, steps: 20}\ntransfer: *p\n")
    study = load_study(file)
    assert [getattr(study, name).steps for name in ("pretrain", "search", "transfer")] == [30, 20, 30]
    assert study.search.length == 64


def test_numbers_and_text_are_read_as_people_mean_them(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: [1e-4, 3E2, 1, -1.5, .5, 0x10, 2026-02-28, yes, ~, '1e-4', 1e]\n")
    assert study_file.read(file)["a"] == [1e-4, 300.0, 1, -1.5, 0.5, 16, "2026-02-28", True, None, "1e-4", "1e"]


def test_anything_but_a_regular_file_is_refused(tmp_path):
    """A pipe without a writer would block the program for ever, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name in ("pipe", "zero", "folder"):
        assert "a study is a regular file" in refused(tmp_path / f"{name}.yaml")
    for name in ("loop", "absent", "x" * 64):
        assert "cannot be read" in refused(tmp_path / f"{name}.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\n")
    assert "not UTF-8 at byte 3" in refused(tmp_path / "bytes.yaml")
    assert "unknown study" in refused(tmp_path)


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "-x", "_x", "{x}", "a b", "a\nb", "a%b", "a?b", "a#b", "é", "x" * 65, "a'b", "a$b"]
)
def test_a_file_name_that_cannot_name_a_results_folder_is_refused(tmp_path, capsys, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text(HEAD)
    for command in (["plan", "--study"], ["data", "--results", str(tmp_path / "results"), "--study"]):
        assert main([*command, str(file)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "is no study's name" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["a", "A", "7", "a.b-c_d", "x" * 64])
def test_a_plain_file_name_is_accepted(tmp_path, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text(HEAD)
    assert load_study(file).name == name
    assert build_graph(load_study(file))


@pytest.mark.parametrize("text", ["1:30", "010", "1_0", "0b1"])
def test_no_integer_is_read_in_base_8_or_60(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"steps: {text}\nother: [10, -3, +4, 0, 1e-4, .5, 2., 1.5e3]\n")
    values = study_file.read(file)
    assert values["steps"] == text
    assert values["other"] == [10, -3, 4, 0, 1e-4, 0.5, 2.0, 1500.0]
    assert [type(value) for value in values["other"]] == [int] * 4 + [float] * 4
