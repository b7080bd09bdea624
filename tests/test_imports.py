"""Arrows point one way: the operator needs torch alone, the configuration needs no torch, the library no networks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "drconv").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("path", [p for p in PACKAGE if "nn" in p.parts], ids=lambda p: p.name)
def test_operator_imports_torch_and_the_standard_library_alone(path: Path) -> None:
    for name in imported_modules(path):
        top = name.split(".")[0]
        assert top in {"torch", "triton"} or top in sys.stdlib_module_names or name.startswith("drconv.nn"), name


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_never_imports_networks_and_commands_are_imported_by_nobody(path: Path) -> None:
    names = imported_modules(path)
    assert not any(name.split(".")[0] in {"models", "drconv_models", "train", "eval"} for name in names)
    if "commands" in path.parts:
        return
    assert path.name == "__main__.py" or not any(name.startswith("drconv.commands") for name in names)
    assert not any(f'"{name}"' in path.read_text() for name in ("models", "drconv_models"))


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda p: p.name)
def test_networks_do_not_depend_on_their_name(path: Path) -> None:
    """The folder is ``models`` in a checkout and ``drconv_models`` where installed: it imports itself relatively."""
    tree = ast.walk(ast.parse(path.read_text()))
    absolute = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom) and not node.level]
    assert not any(name.split(".")[0] in {"models", "drconv_models"} for name in absolute)


ALLOWED = {  # part of drconv: parts it may import from, besides itself, config and errors
    "paths": set(),
    "files": set(),
    "distributed": {"world"},
    "world": set(),
    "console": set(),
    "arguments": {"messages", "migrations"},
    "help": {"config_check", "messages"},
    "pool": set(),
    "run_status": {"files", "tasks"},
    "outcomes": {"files", "messages", "tasks"},
    "config_ranges": set(),
    "config_detection": set(),
    "stored_yaml": {"files"},
    "migrations": set(),
    "model_files": {"paths"},
    "weights": {"files"},
    "interfaces": {"nn", "weights"},
    "data": {"files", "interfaces"},
    "tasks": {"data", "distributed", "files", "interfaces", "nn", "weights"},
    "results": {"compose", "files", "identity", "migrations", "nn", "paths", "tasks"},
    "figures": {"nn"},
    "report": {"results"},
    "export": {"files", "nn"},
    "config_check": {"config_detection", "config_ranges", "paths", "tasks", "world"},
    "messages": {"paths"},
    "identity": set(),
    "planted": {"nn"},
    "compose": {"arguments", "config_check", "identity", "migrations", "stored_yaml"},
    "cli": {"arguments", "compose", "console", "help", "messages", "outcomes"},
    "engine": {
        *(
            "compose",
            "config_check",
            "console",
            "data",
            "distributed",
            "files",
            "identity",
            "interfaces",
            "messages",
            "migrations",
            "outcomes",
            "run_status",
        ),
        *("nn", "paths", "results", "tasks", "weights", "world"),
    },
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "drconv").with_suffix("").parts[0]


@pytest.mark.parametrize("path", [p for p in PACKAGE if part_of(p) in ALLOWED], ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    part = part_of(path)
    found = {name.split(".")[1] for name in imported_modules(path) if name.startswith("drconv.")}
    assert found <= ALLOWED[part] | {part, "config", "errors"}, path


def test_every_part_has_its_rule() -> None:
    free = {"__init__", "__main__", "commands", "config", "errors", "nn"}  # both ends, and what the first test holds
    assert {part_of(path) for path in PACKAGE} - free == ALLOWED.keys()


def test_engine_and_tables_know_tasks_by_the_registry_alone() -> None:
    for path in PACKAGE:
        if part_of(path) in {"engine", "results", "config_check"}:
            names = {name for name in imported_modules(path) if name.startswith("drconv.tasks.")}
            allowed = ("drconv.tasks.registry", "drconv.tasks.find_task")
            assert all(name.startswith(allowed) for name in names), path


def test_tasks_do_not_know_each_other() -> None:
    for path in PACKAGE:
        folder = path.relative_to(ROOT / "drconv").parts[1:2]
        if part_of(path) == "tasks" and folder and not folder[0].endswith(".py"):
            own = (f"drconv.tasks.{folder[0]}", "drconv.tasks.registry")
            names = {name for name in imported_modules(path) if name.startswith("drconv.tasks.")}
            assert all(name.startswith(own) for name in names), path


def test_what_starts_fast_loads_no_torch() -> None:
    modules = (
        "drconv.cli, drconv.config_check, drconv.migrations, drconv.tasks.registry, drconv.commands.tables, "
        "drconv.commands.train"
    )
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
