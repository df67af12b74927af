"""Where code may stand: which room may import which, how long a module and how complex a function may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ENVIRONMENT = {"environ", "getenv"}
ROOT = Path(__file__).parents[1]
FOLDERS = {"growpipe": "pipeline", "growpipe.graph_ops": "graph_ops", "growpipe.models": "models"}

# What each top-level folder or module of the package may import of the others.
ALLOWED = {
    "graph_ops": "",
    "environment": "graph_ops",
    "suggestions": "graph_ops",
    "validation": "suggestions",
    "printing": "graph_ops",
    "seeding": "",
    "progress": "environment graph_ops printing",
    "user_code": "graph_ops suggestions",
    "data": "environment graph_ops seeding user_code",
    "models": "data graph_ops",
    "parallel": "data environment graph_ops progress seeding",
    "torch_module": "data graph_ops user_code",
    "signals": "",
    "quality": "graph_ops",
    "metrics": "graph_ops quality",
    "pages": "graph_ops printing quality",
    "bundle": "checks graph_ops printing quality",
    "training": "data environment graph_ops metrics parallel progress quality seeding suggestions "
    "torch_module user_code validation",
    "checks": "environment graph_ops metrics printing quality suggestions torch_module user_code validation",
    "testing": "checks graph_ops torch_module",
    "budgets": "checks environment graph_ops parallel progress suggestions torch_module",
    "analyser": "budgets data environment graph_ops parallel progress seeding suggestions torch_module "
    "user_code validation",
    "run": "analyser budgets checks data environment graph_ops metrics models pages parallel printing "
    "progress quality seeding suggestions torch_module tracking training user_code validation",
    "tracking": "environment graph_ops suggestions",
    "callbacks": "analyser budgets data environment graph_ops progress suggestions torch_module tracking "
    "user_code",
    "commands": "bundle checks environment graph_ops pages parallel printing quality run suggestions "
    "tracking",
    "cli": "environment graph_ops printing signals",
    "__main__": "cli",
    "": "analyser budgets checks data environment graph_ops torch_module",  # growpipe/__init__.py, lazily
}

# The order inside a folder with sub-folders: a room imports only rooms that stand before it.
ORDER = {
    "graph_ops": "arrays errors operators bodies hashes files notebook onnx_tools axes cost groups plan edit",
    "analyser": "options watch samples schemes candidates program preparation resources curvature spectra "
    "choice estimate report factor_plans analysis api",
    "checks": "measure policy child report baseline input_sets equivalence context registry request "
    "same_defect runner areas formats",
    "run": "locate lock recipe recipe_keys store task recipe_limits facts announce rehearsal stages "
    "leftovers verdict summary figure picture tracked repeat story finish family_picture family_finish "
    "family loop",
}

LONGEST_MODULE = 420

# Functions of a complexity above 10, at most, in percent: as ruff counts it (branches), and as radon does
# (branches, boolean operators and comprehensions: what a reader has to hold in mind).
COMPLEX = {"graph_ops": (1.2, 11.3), "pipeline": (0.3, 6.8), "models": (0.0, 2.3)}
# Functions with more than 8 parameters, at most.
MANY_PARAMETERS = {"graph_ops": 0, "pipeline": 5, "models": 1}


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """A leaf folder is one room; in a folder with sub-folders every module is a room of its own."""
    path = MODULES[module]
    has_rooms = any(child.is_dir() and any(child.glob("*.py")) for child in path.parent.iterdir())
    return module if has_rooms or path.name == "__init__.py" else module.rpartition(".")[0]


def imported_by(module: str) -> Iterator[str]:
    """The modules of the package that ``module`` imports anywhere: at its head, in functions, for types."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                for name in (f"{node.module}.{alias.name}", node.module):
                    if name in MODULES:
                        yield name
                        break


IMPORTS = sorted(
    {
        (room_of(module), room_of(imported))
        for module in MODULES
        for imported in imported_by(module)
        if room_of(module) != room_of(imported)
    }
)


def top(room: str) -> str:
    """The first name below the package: ``analyser`` of ``growpipe.analyser.spectra``."""
    return [*room.split("."), ""][1]


def test_every_folder_and_module_at_the_top_has_its_line_in_the_table() -> None:
    assert {top(room_of(module)) for module in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED, ids=lambda name: name or "growpipe")
def test_imports_between_folders_go_one_way(name: str) -> None:
    wrong = [
        f"{room} imports {imported}"
        for room, imported in IMPORTS
        if top(room) == name and top(imported) not in {name, *ALLOWED[name].split()}
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ORDER)
def test_imports_inside_a_folder_go_one_way(folder: str) -> None:
    order = ORDER[folder].split()
    wrong = []
    for room, imported in IMPORTS:
        if top(room) != folder or top(imported) != folder:
            continue
        names = [[*name.split("."), ""][2] for name in (room, imported)]
        if names[0] == "" or names[0] == names[1]:  # the folder's __init__, which is its door; the same room
            continue
        assert set(names) <= set(order), f"give a place in ORDER to {set(names) - set(order)}"
        if order.index(names[1]) > order.index(names[0]):
            wrong.append(f"{room} imports {imported}")
    assert wrong == []


def test_rooms_form_no_import_cycle() -> None:
    reached = {room: {b for a, b in IMPORTS if a == room} for room, _ in IMPORTS}
    while True:  # rooms that import nothing that is left are not on a cycle
        done = {room for room, others in reached.items() if not others & reached.keys()}
        if not done:
            break
        reached = {room: others for room, others in reached.items() if room not in done}
    assert reached == {}


def test_no_module_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_default_comes_from_the_environment() -> None:
    found = []
    for name, path in MODULES.items():
        constants = [
            statement
            for statement in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(statement, ast.Assign | ast.AnnAssign)
        ]
        nodes = (node for constant in constants for node in ast.walk(constant))
        found += [name for node in nodes if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT]
    assert found == []


@pytest.mark.parametrize("folder", COMPLEX)
def test_functions_are_simple(folder: str) -> None:
    assert ruff(folder, "C901", "lint.mccabe.max-complexity=20") == []
    assert len(ruff(folder, "PLR0913", "lint.pylint.max-args=8")) <= MANY_PARAMETERS[folder]
    functions = list(functions_of(folder))
    branching = ruff(folder, "C901", "lint.mccabe.max-complexity=10")
    dense = [name for name, complexity in functions if complexity > 10]
    most_branching, most_dense = COMPLEX[folder]
    assert 100 * len(branching) / len(functions) <= most_branching, branching
    assert 100 * len(dense) / len(functions) <= most_dense, dense


def ruff(folder: str, rule: str, limit: str) -> list[str]:
    """The functions of a folder above a limit, exceptions noted in the code included."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--ignore-noqa",
        "--exit-zero",
        "--no-cache",
    ]
    options = ["--select", rule, "--config", limit, "--output-format", "json", str(ROOT / folder)]
    found = json.loads(subprocess.check_output([*command, *options], text=True, timeout=100))
    return [f"{entry['filename']}:{entry['location']['row']}: {entry['message']}" for entry in found]


def functions_of(folder: str) -> Iterator[tuple[str, int]]:
    """Every function of a folder and its complexity as radon counts it, nested functions apart."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", 1 + _decisions(node.body)


def _decisions(nodes: Iterable[ast.AST]) -> int:
    total = 0
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        elif isinstance(node, _DECISIONS):
            total += 1
        total += _decisions(ast.iter_child_nodes(node))
    return total


_DECISIONS = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.Assert,
    ast.Lambda,
    ast.match_case,
)
