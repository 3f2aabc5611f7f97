"""pyproject.toml, constraints.txt and environment.yml agree."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from snakemake.cli import parse_args, parse_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PINS = {canonicalize_name(name): version for name, version in PINS.items()}


OPTIONAL = {"openvino", "litert", "quanto", "tensorflow"}  # extras that no environment has by itself


def declared(without: set[str] = frozenset()) -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for name in extras if name not in without for line in extras[name])]
    return [Requirement(line) for line in lines]


def test_every_dependency_is_pinned_within_its_range():
    for requirement in declared():
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement


def test_torch_is_pinned_to_the_measured_version():
    assert PINS["torch"] == "2.13.0"


def test_conda_has_the_same_packages():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == ["python=3.11", "pip"]
    listed = {canonicalize_name(name): version for name, version in (line.split("==") for line in pip["pip"])}
    assert listed == {canonicalize_name(item.name): PINS[canonicalize_name(item.name)] for item in declared(OPTIONAL)}
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_training_core_needs_no_workflow():
    """A GPU machine runs the stages without Snakemake, MLflow, datasets or evaluate."""
    core = " ".join(PROJECT["dependencies"])
    assert not re.search(r"snakemake|mlflow|datasets|evaluate|onnx", core)


def test_make_passes_a_target_on_to_snakemake():
    """Snakemake's --config takes every following word that is not an option."""
    command = ["make", "-n", "reproduce", "STUDY=cpu", "ARGS=table_8 --keep-going"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("snakemake ")]
    _, options = parse_args(shlex.split(line.partition(";")[0])[1:])
    assert options.keep_going
    assert set(options.targets) == {"table_8"}
    assert parse_config(options.config) == {"study": "cpu"}
