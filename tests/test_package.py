"""The installed package: one wheel, unpacked, and its commands run from another folder without this checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
RUN = """
import sys
from pathlib import Path
import drconv
assert Path(drconv.__file__).is_relative_to(sys.argv[1]), drconv.__file__
from drconv.commands.main import main
def run(line):
    sys.argv = line.split()
    return main()
assert not run("drconv") and run("drconv trian") == 2
assert run("drconv tables") == run("drconv tables check") == 0
assert not {"torch", "models"} & sys.modules.keys()
run("drconv cost shufflenetv2_0.25x")
run("drconv train experiment=small/inside/regions_2 data=digits data.holdout=0 runtime.dry_run=true recipe.steps=2"
    " recipe.epochs=null recipe.batch_size=8 recipe.schedule.warmup_steps=1 runtime.workers=0 runtime.device=cpu")
import drconv_models.timm_registry, timm
network = timm.create_model("drconv_shufflenetv2_x0_5", num_classes=3)
assert type(network).__module__ == "drconv_models.shufflenetv2"
assert "models" not in sys.modules
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would unpack, built from a copy, since a build leaves files behind."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in ("drconv", "models", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results", source / "results", ignore=shutil.ignore_patterns("runs"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = subprocess.run([sys.executable, "-c", BUILD, folder], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_everything_is_packed_and_nothing_else(installed: Path) -> None:
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"drconv", "drconv_models"}
    pairs = [("drconv", "drconv"), ("models", "drconv_models"), ("configs", "drconv/configs")]
    for here, there in pairs:
        for path in (ROOT / here).rglob("*"):
            if path.suffix in (".py", ".yaml", ".cpp", ".h", ".npz") and "local" not in path.parts:
                assert (installed / there / path.relative_to(ROOT / here)).is_file(), path
    assert {path.name for path in (installed / "drconv/printed").iterdir()} == {
        "paper.yaml",
        "comparisons.yaml",
        "costs.yaml",
    }
    entry_points = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "drconv = drconv.commands.main:main" in entry_points


def test_commands_and_networks_work_from_another_folder(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "DRCONV_KERNEL": "torch"}
    command = [sys.executable, "-P", "-c", RUN, str(installed)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "drconv trian is no command; did you mean train?" in run.stderr
    assert "shufflenetv2_0.25x" in run.stdout
    assert (tmp_path / "results/README.md").is_file()
