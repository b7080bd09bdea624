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
def test_library_never_imports_networks(path: Path) -> None:
    assert not any(name.split(".")[0] in {"models", "train", "eval"} for name in imported_modules(path))


def test_layers_point_one_way() -> None:
    allowed = {  # folder of drconv: folders it may import from
        "data": {"data", "config", "errors", "files"},
        "metrics": {"metrics", "distributed"},
        "tasks": {"tasks", "data", "metrics", "nn", "config", "errors", "distributed", "files"},
        "nn": {"nn"},
    }
    for path in PACKAGE:
        folder = path.relative_to(ROOT / "drconv").parts[0]
        if folder in allowed:
            found = {name.split(".")[1] for name in imported_modules(path) if name.startswith("drconv.")}
            assert found <= allowed[folder], f"{path.name} imports {found - allowed[folder]}"


def test_command_line_starts_without_torch() -> None:
    code = "import sys, drconv.cli, drconv.config_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
