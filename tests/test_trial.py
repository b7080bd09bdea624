"""Kernels are tried out before they are used; the self-test shows what is wrong."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drconv.nn import DRConv2d, kernels, region_conv2d, selftest
from drconv.nn.kernels import cpu, cpu_operators
from drconv.nn.kernels import torch as torch_kernel
from tests.oracle import random_problem


class Broken:
    """A kernel of the first choice that is wrong, or does not compile."""

    def __init__(self, error: str) -> None:
        self.error, self.calls = error, 0

    def supports(self, *arguments: object) -> bool:
        return True

    def region_conv2d(
        self, x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: object
    ) -> Tensor:
        self.calls += 1
        if self.error == "raises":
            raise RuntimeError("PTX assembly failed\nwith a long log")
        if self.error == "gradient" and logits.requires_grad:
            logits = logits.detach() + 0 * logits
        y = torch_kernel.region_conv2d(x, weight, logits, scale, geometry)
        return y * {"output": 1.5, "nan": torch.nan}.get(self.error, 1.0)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_faults", {})
    monkeypatch.setitem(kernels.PREFERRED, "cpu", "triton")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("raises", "RuntimeError: PTX assembly failed"),
        ("output", "is off by 5.0e-01 in float32"),
        ("nan", "is off by nan"),
        ("gradient", "its logits is off by"),
    ],
)
def test_a_kernel_that_is_wrong_gives_way_with_one_line(
    error: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(error)
    monkeypatch.setitem(kernels._MODULES, "triton", broken)
    p = random_problem(dtype=torch.float32)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger=kernels.__name__), torch.inference_mode():
        for _ in range(3):
            actual = region_conv2d(p.x, p.weight, p.logits, scale=p.scale)
            expected = region_conv2d(p.x, p.weight, p.logits, scale=p.scale, kernel="reference")
            torch.testing.assert_close(actual, expected)
    (record,) = caplog.records
    assert message in record.getMessage()
    assert "\n" not in record.getMessage()
    assert broken.calls == 1
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=message):
        region_conv2d(p.x, p.weight, p.logits, kernel="triton")


def test_a_kernel_that_is_right_is_used_and_tried_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = Broken("nothing")
    monkeypatch.setitem(kernels._MODULES, "triton", good)
    p = random_problem(dtype=torch.float32)
    with caplog.at_level(logging.WARNING), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            region_conv2d(p.x, p.weight, p.logits, scale=p.scale)
    assert good.calls == 4
    assert not caplog.records
    torch._dynamo.reset()
    kernels._faults.clear()
    compiled = torch.compile(lambda x: region_conv2d(x, p.weight, p.logits), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(p.x), region_conv2d(p.x, p.weight, p.logits, kernel="torch"))
    assert good.calls == 6


def test_selftest_passes_here_and_shows_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(kernels.PREFERRED, "cpu", "cpu")
    monkeypatch.setattr(selftest, "_SECONDS", 0.0)
    monkeypatch.setattr(selftest, "_PROBLEMS", ({"channels": 6, "side": 5},))
    is_built = kernels.load("cpu") is not None and kernels.load("cpu").is_available()
    assert selftest.main(["--device", "cpu"]) == (0 if is_built else 1)
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert shown.count("ok  ") >= (10 if is_built else 8)
    monkeypatch.setitem(kernels._MODULES, "torch", Broken("gradient"))
    assert selftest.main(["--device", "cpu"]) == 1
    assert "FAIL cpu     torch     float32  its logits is off by" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        selftest.main(["--device", "npu"])


def test_saved_programs_run_after_importing_the_package_alone(tmp_path: Path) -> None:
    """In a new process, where nothing has used the operators before."""
    x, path = torch.randn(2, 4, 5, 5), tmp_path / "layer.pt2"
    with torch.no_grad():
        layer = DRConv2d(4, 6, 1).eval()
        torch.export.save(torch.export.export(layer, (x,)), path)
        torch.save((x, layer(x)), tmp_path / "expected.pt")
    code = """
import drconv, torch, sys
print(torch.ops.drconv.cpu_drconv.default, drconv.nn.kernels.cpu._load.cache_info().misses)
x, y = torch.load(sys.argv[1] + "/expected.pt")
torch.testing.assert_close(torch.export.load(sys.argv[1] + "/layer.pt2").module()(x), y)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "drconv.cpu_drconv.default 0\n"


def test_operators_without_their_kernel_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be built, saved programs run in ordinary operations."""
    if not cpu.is_available():
        pytest.skip("no kernel to compare with")
    torch.manual_seed(0)
    for options in ({}, {"generator": "experts"}, {"scale": False, "guide_norm": "none"}):
        conv = DRConv2d(4, 6, 1, regions=3, **options).eval()
        norm = [torch.rand(6) for _ in range(4)]
        gate = (None, None, 1.0) if conv.generator is None else (conv.generator.weight, conv.generator.bias, 0.5)
        for guide, is_logits in ((conv.guide.weight, False), (torch.randn(2, 3, 3, 2), True)):
            arguments = (torch.randn(2, 4, 5, 5), conv.weight, guide, is_logits, norm_of(guide, is_logits), 1e-3)
            arguments = tuple(t.detach() if isinstance(t, Tensor) else t for t in (*arguments, *gate, conv.bias))
            expected = torch.ops.drconv.cpu_drconv(*arguments, norm, 1e-3, 0.9)
            torch.testing.assert_close(cpu_operators._layer(*arguments, norm, 1e-3, 0.9), expected)
    p = random_problem(dtype=torch.float32)
    grad = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(cpu_operators._forward(*p.tensors()), torch.ops.drconv.cpu_region_conv2d(*p.tensors()))
    for needs in ([True] * 4, [True, False, False, True], [False, True, False, False]):
        expected = torch.ops.drconv.cpu_region_conv2d_backward(grad, *p.tensors(), *needs)
        for actual, e, is_needed in zip(
            cpu_operators._backward(grad, *p.tensors(), *needs), expected, needs, strict=True
        ):
            if is_needed:
                torch.testing.assert_close(actual, e)


def norm_of(guide: Tensor, is_logits: bool) -> list[Tensor]:
    return [] if is_logits else [torch.randn(len(guide)), torch.rand(len(guide))]


def test_operators_are_registered_soundly() -> None:
    """torch's own checks of schemas, shapes under tracing and gradients."""
    if not cpu.is_available():
        pytest.skip("no kernel")
    p = random_problem(dtype=torch.float32, channels_last=True, size=(4, 6))
    tensors = p.tensors()
    layer = (tensors[0], tensors[1][0], tensors[2], True, [], 0.0, None, None, 1.0, None, [], 0.0, None)
    torch.library.opcheck(torch.ops.drconv.cpu_drconv, layer)
    torch.library.opcheck(torch.ops.drconv.cpu_region_conv2d, tuple(t.requires_grad_() for t in tensors))
    tests = ("test_schema", "test_faketensor")
    detached = [t.detach() for t in tensors]
    arguments = (torch.randn(2, 6, 4, 6), *detached, True, True, True, True)
    torch.library.opcheck(torch.ops.drconv.cpu_region_conv2d_backward, arguments, test_utils=tests)
