"""The examples run, with torch as the only package beside drconv, and the page shows the same code."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Packages of pyproject.toml that the operator library must do without.
BLOCKED = ["torchvision", "timm", "hydra", "omegaconf", "wandb", "pycocotools", "safetensors", "PIL"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_with_torch_alone(example: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"  # None makes an import of the name fail
        f"runpy.run_path({str(example)!r}, run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DRCONV_KERNEL": "torch"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_page_shows_the_example() -> None:
    page = (ROOT / "docs/operator.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    source = (ROOT / "examples/drconv_layer.py").read_text()
    assert source.split('"""\n\n', 1)[1] in blocks


def test_the_tutorials_network_learns_and_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    tutorial = runpy.run_path(str(ROOT / "examples/tutorial/own_network.py"))
    monkeypatch.setitem(tutorial["train"].__globals__, "EPOCHS", 2)
    tutorial["main"](tmp_path)
    printed = capsys.readouterr().out
    shown = re.findall(r"^    (layer  now.*?)\n\n", (ROOT / "docs/tutorial.md").read_text(), re.M | re.S)
    assert shown[0].replace("\n    ", "\n") in printed.replace(" \n", "\n")
    assert float(re.findall(r"([\d.]+) % of 360", printed)[0]) > 30  # by chance 10
    assert {"regions.png", "own.onnx"} <= {path.name for path in tmp_path.iterdir()}
