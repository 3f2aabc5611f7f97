"""Every key of a study is described, by `plan --keys` and by docs/study.md."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from mobilebert.cli.main import main
from mobilebert.study import keys
from mobilebert.study.fields import Batch, Positive, Rate, Share
from mobilebert.study.load import load_study
from mobilebert.study.schema import Study

PAGE = Path(__file__).parents[3] / "docs" / "study.md"
KEYS = list(keys.keys())


def test_the_page_is_the_generated_one():
    assert PAGE.read_text(encoding="utf-8") == keys.markdown(), "python -m mobilebert.study.keys > docs/study.md"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_is_described_in_one_or_two_sentences(key):
    assert key.description.endswith(".")
    assert 1 <= len(re.findall(r"\.(?= [A-Z`]|$)", key.description)) <= 2
    assert key.description.isascii()
    assert "|" not in f"{key.name}{key.kind}{key.default}{key.description}"  # it would end a cell of the table


def test_the_list_holds_top_level_sections_and_what_lies_in_maps_and_lists():
    names = [key.name for key in KEYS]
    assert len(set(names)) == len(names)
    assert {name for name in names if "." not in name} == {field.alias or name for name, field in Study.model_fields.items()}
    nested = {"finetune.tasks.<name>.epochs", "checkpoints.<name>.sha256", "expect.<number>.by", "latency.length"}
    assert nested < set(names)


def test_every_default_is_yaml_that_a_study_takes(tmp_path):
    lines = ["description: all defaults written out"]
    for section, found in keys.sections():
        flat = [key for key in found if "<" not in key.name and key.default is not None]
        if section.name == "finetune":  # with search: paper these may not be given
            flat = [key for key in flat if key.name.partition(".")[2] not in ("learning_rate", "batch_size", "epochs", "tasks")]
        if section.name == "top level":
            lines += [f"{key.name}: {key.default}" for key in flat]
        elif flat:
            lines += [f"{section.name}:", *(f"  {key.name.partition('.')[2]}: {key.default}" for key in flat)]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(lines))
    assert load_study(file).model_dump(exclude={"description"}) == Study(description="x").model_dump(exclude={"description"})


def test_the_example_of_the_page_is_a_study(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", keys.HEAD, re.DOTALL)[1])
    assert load_study(file).finetune.search == "none"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Positive, "integer of at least 1"),
        (Annotated[int, Field(ge=0, lt=10)], "integer from 0 to 9"),
        (Batch, "integer from 1 to 1,048,576"),
        (Share, "number from 0 to 1"),
        (Rate, "number above 0 and below 1"),
        (Rate | None, "number above 0 and below 1, or null"),
        (Literal["a", "b", "c"], "a, b or c"),
        (tuple[Positive, ...], "list of integers of at least 1"),
        (tuple[float, float], "list of 2 numbers"),
        (dict[str, Literal["all"] | tuple[str, ...]], "mapping of names to all or list of texts"),
        (bool, "true or false"),
    ],
)
def test_types_and_bounds_are_in_words(annotation, words):
    assert keys.kind_of(annotation) == words


def test_plan_keys_prints_every_key_in_100_columns(capsys):
    assert main(["plan", "--keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    printed = {line.strip().partition(": ")[0] for line in lines if line.startswith("  ")} | set(lines)
    assert {key.name for key in KEYS} <= printed
    assert "  pretrain.batch_size: integer from 1 to 1,048,576; default 4096" in lines


@pytest.mark.parametrize("extra", [["smoke"], ["--study", "smoke"], ["--device", "cpu"]])
def test_plan_keys_takes_no_study(capsys, extra):
    assert main(["plan", "--keys", *extra]) == 2
    assert "leave out the study and --device" in capsys.readouterr().err


def test_plan_keys_imports_no_torch():
    code = "import sys; from mobilebert.cli.main import main; main(['plan', '--keys']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
