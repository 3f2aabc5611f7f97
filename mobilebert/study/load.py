"""Load a study: typed values that define its results, by default those of the paper's recipe.

A study file (`workflows/config/<study>.yaml`) lists only differences from the defaults. Threads,
paths and devices never enter a fingerprint; `device` only says what a study needs.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from mobilebert.study import file as study_file
from mobilebert.study.recipe import TaskSetting
from mobilebert.study.schema import NAME, Study
from mobilebert.study.sections import Checkpoint, Expectation
from mobilebert.util.errors import UserError, allowed, shown


def studies() -> dict[str, Path]:
    """Return name -> file of the studies in `workflows/config` of the working directory if there is
    one, else of this checkout."""
    here = Path("workflows/config")
    folder = here if here.is_dir() else Path(__file__).parents[2] / "workflows" / "config"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_study(study: str | Path) -> Study:
    """Return a study by name or file; `build_graph` then checks that its jobs can be configured.

    Raises UserError, one line with file, key and what is allowed.
    """
    file = Path(study)
    if file.suffix not in (".yaml", ".yml"):
        known = studies()
        if str(study) not in known:
            names = allowed(known, study)
            raise UserError(f"study: unknown study {shown(str(study))}; {names}, or a path to a .yaml file")
        file = known[str(study)]
    if not NAME.fullmatch(file.stem):
        raise UserError(
            f"{file}: {shown(file.stem)} is no study's name, which has at most 64 letters, digits, '.', '_' and '-' "
            "and begins with a letter or digit; rename the file"
        )
    content = study_file.read(file)
    try:
        loaded = Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error, Study)}") from None
    object.__setattr__(loaded, "_name", file.stem)
    object.__setattr__(loaded, "_file", str(file.resolve()))
    return loaded


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Return one line on the first validation error: the key, what is wrong, what is allowed."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:60] for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(model, problem["loc"][:-1])
        return f"{where}: unknown key" + (f"; {allowed(fields, problem['loc'][-1])}" if fields else "")
    kinds = {"model_type": "a group of keys is allowed", "dict_type": "a mapping is allowed", "tuple_type": "a list is allowed"}
    message = kinds.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if problem["type"] not in ("missing", "value_error"):
        message = f"{message}, not {shown(problem['input'])}"
    return f"{where}: {message}" if where else message  # no location: the whole file, or a check that names its key


def _fields_at(model: type[BaseModel], location: tuple) -> list[str]:
    """Return the keys allowed at pydantic's `location`; [] if it holds no group of keys."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # a mapping's key or a list's index: `model` is its items' type already
            continue
        inner = [kind for kind in (TaskSetting, Expectation, Checkpoint) if kind.__name__ in str(field.annotation)]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = [field.annotation]
        if not inner:
            return []
        model = inner[0]
    return sorted(field.alias or name for name, field in model.model_fields.items())
