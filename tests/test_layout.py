"""The house: who may import whom, and what the list of methods promises."""

import ast
import re
from pathlib import Path

import pytest

from hf_ssl.commands.methods import MethodsSettings
from hf_ssl.commands.methods import run as list_methods
from hf_ssl.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_ssl"
LOWEST = {"answers", "errors", "imports", "tokens", "settings", "invocation", "distributed", "private", "seeded"}
LOWEST |= {"writing"}
FLOORS = [
    {"diagnostics", "data", "figures", "modules", "dynamics"},
    {"methods"},
    {"evaluation"},
    {"metrics", "training"},
    {"hub"},
    {"features", "fine_tuning", "studies"},
    {"demo"},
    {"commands"},
]
"""Rooms from the ground up; a room imports those below its floor, and what the next dictionary adds or takes away."""
BESIDE = {"fine_tuning": {"features"}, "studies": {"fine_tuning"}}
NEVER = {
    "diagnostics": {"settings", "invocation", "tokens", "distributed", "writing"},  # tensor -> number
    "figures": {"settings", "invocation", "tokens", "distributed", "writing"},  # numbers -> picture
    "dynamics": {"settings", "invocation", "tokens", "distributed", "writing"},  # theory
    "methods": {"data", "figures", "dynamics"},
    "evaluation": {"methods"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(room: str) -> set[str]:
    """Rooms that a room may import."""
    if room in LOWEST:
        return LOWEST
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    below = LOWEST.union(*FLOORS[:floor])
    return (below | BESIDE.get(room, set())) - NEVER.get(room, set())


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, without the leading `hf_ssl.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hf_ssl":
            found |= {f"{node.module}.{alias.name}".removeprefix("hf_ssl.") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("hf_ssl.") for alias in node.names if alias.name.startswith("hf_ssl.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_below_it(path: Path):
    room = room_of(path)
    if room == "__main__":
        return
    # The version is the package's, not a room's.
    used = {name.split(".")[0] for name in imports_of(path)} - {"__version__", room}
    assert used <= allowed(room)


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=lambda path: path.stem)
def test_a_room_of_data_imports_only_those_below_it(path: Path):
    below = {"decode": set(), "views": {"decode"}, "sources": {"decode"}, "order": {"decode", "views", "sources"}}
    room = path.parent.name
    if room != "data":
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("data.")} - {room}
        assert used <= below[room]


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_no_method_imports_another(path: Path):
    if path.stem in ("__init__", "base"):
        return
    others = {name.split(".")[1] for name in imports_of(path) if name.startswith("methods.")}
    assert others <= {"base"}


def test_training_knows_the_base_of_methods_alone():
    for path in (PACKAGE / "training").glob("*.py"):
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("methods.")}
        assert used <= {"base"}, path


def test_no_file_is_a_room_without_a_name():
    nameless = {"utils", "helpers", "common", "misc"}
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in nameless]


def test_methods_and_files_correspond():
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__", "base"}
    assert {model.__module__.rsplit(".", 1)[1] for model in METHODS.values()} == files
    for name, model in METHODS.items():
        assert model.config_class.model_type == f"hf_ssl_{name}"


def test_method_names_are_unique_in_the_source():
    # A duplicate key of a dictionary literal would silently replace the first one.
    tree = ast.parse((PACKAGE / "methods" / "__init__.py").read_text())
    literal = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "METHODS"
    )
    assert isinstance(literal, ast.Dict)
    keys = [key.value for key in literal.keys if isinstance(key, ast.Constant)]
    assert sorted(keys) == sorted(set(keys)) == sorted(METHODS)


def test_the_readme_lists_every_method():
    table = str(list_methods(MethodsSettings(markdown=True)))
    assert table.count("\n") == 1 + len(METHODS)
    assert table in (ROOT / "README.md").read_text(), "replace its table by what `hf-ssl methods --markdown` prints"


def test_the_repository_names_no_machine():
    suspicious = re.compile(r"(?<![\w.])/(?:work|root|farm)/")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("scripts/**/*"), *PACKAGE.rglob("*.py"), *ROOT.glob("tests/**/*.py")]:
        if path.is_file() and path.suffix in {".md", ".py", ".toml", ".sh"} and path != Path(__file__):
            assert not suspicious.search(path.read_text()), path
