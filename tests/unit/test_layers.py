"""A room of the package imports only from the rooms below it (docs/design.md)."""

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mobilebert"
LAYERS = (
    {"util"},
    {"paper"},
    {"modeling"},
    {"study"},
    {"jobs"},
    {"data", "training"},
    {"pretraining", "distillation", "finetuning", "evaluation", "deployment", "tf"},
    {"reporting"},
    {"compare", "claims", "publishing"},
    {"stages"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imports(file: Path):
    """Yield the modules of the package that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mobilebert":
            for name in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), name.name)
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                yield f"{node.module}.{name.name}" if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "mobilebert")


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


GRAPH = {name_of(file): set(imports(file)) for file in PACKAGE.rglob("*.py")}


def test_every_room_has_a_layer():
    assert {room_of(name) for name in GRAPH} - {"", "__main__"} == set(LEVEL)


def test_no_import_points_up():
    upward = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if room_of(module) in LEVEL and LEVEL.get(room_of(other), -1) > LEVEL[room_of(module)]
    ]
    assert not upward


def test_there_are_no_import_cycles_between_modules_or_rooms():
    list(graphlib.TopologicalSorter({name: others - {name} for name, others in GRAPH.items()}).static_order())
    rooms = {}
    for name, others in GRAPH.items():
        if room_of(name):
            rooms.setdefault(room_of(name), set()).update(map(room_of, others))
    list(graphlib.TopologicalSorter({room: others - {room, ""} for room, others in rooms.items()}).static_order())
