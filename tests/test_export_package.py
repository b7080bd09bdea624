"""A package of AOTInductor, run by a C++ program without Python; our operator inside onnxruntime."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from drconv import substitute
from drconv.errors import ExportError
from drconv.export import export_onnx, export_package
from drconv.export.native import HEADERS, onnxruntime_library
from drconv.nn.kernels import cpu
from models.shufflenetv2 import ShuffleBlock

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), ShuffleBlock(16, 16, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    assert len(substitute(network, "drconv", ["1.branch2.[05]"], regions=4, input_size=16)) == 3
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(8, 3, 16, 16))
    return network.eval()


@torch.no_grad()
def test_a_program_without_python_runs_a_package(network: nn.Module, tmp_path: Path) -> None:
    if not cpu.is_available():
        pytest.skip(f"the C++ kernel is not available: {cpu.why_not()}")
    report = export_package(network, tmp_path / "network.pt2", torch.randn(2, 3, 16, 16))
    root, program = Path(torch.__file__).parent, tmp_path / "deploy"
    includes = [f"-I{root / 'include'}", f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    rpath = f"-Wl,-rpath,{root / 'lib'}"
    links = [f"-L{root / 'lib'}", rpath, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    source = str(ROOT / "examples" / "deploy.cpp")
    subprocess.run(["c++", "-O0", "-std=c++20", source, *includes, *links, "-o", str(program)], check=True)
    words = [str(program), str(report.library), str(report.path), "3", "16", "16"]
    result = subprocess.run(words, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert result.returncode == 0, result.stderr
    picture = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = network(torch.cat([picture, -picture])).sum(1)
    found = torch.tensor([float(line) for line in result.stdout.split()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_package_is_named_as_torch_wants(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must end in \.pt2"):
        export_package(network, tmp_path / "network.zip", torch.randn(2, 3, 16, 16))


@pytest.mark.skipif(not os.environ.get(HEADERS), reason=f"{HEADERS} does not name onnxruntime's headers")
def test_onnxruntime_runs_our_operator(network: nn.Module, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    report = export_onnx(network, tmp_path / "network.onnx", torch.randn(2, 3, 16, 16), custom_operator=True)
    assert report.layers == 2
    assert max(report.errors) < 1e-5
    domains = [node.domain for node in onnx.load(report.path).graph.node]
    assert domains.count("drconv") == 2


def test_the_custom_operator_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEADERS, str(tmp_path))
    with pytest.raises(ExportError, match=r"needs onnxruntime's headers"):
        onnxruntime_library()
