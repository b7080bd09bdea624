"""Kernels that are not available: one short line, and the remedy; and the dispatch as the compiler sees it."""

import logging
import warnings
from pathlib import Path

import pytest
import torch

from drconv.nn import DRConv2d, kernels
from drconv.nn.kernels import cpu
from tests.oracle import random_problem


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loader as in a fresh process with an empty cache and nothing on the PATH."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cpu, "_failure", None)
    monkeypatch.setattr(cpu, "is_available", cpu._load.__wrapped__)


def test_missing_compiler_is_one_line_with_the_remedy(no_extension: None, caplog: pytest.LogCaptureFixture) -> None:
    problem = random_problem(dtype=torch.float32)
    arguments = (*problem.tensors(), problem.geometry())
    with caplog.at_level(logging.WARNING, logger=cpu.__name__):
        assert kernels.select(*arguments) is kernels.load("torch").region_conv2d
    (record,) = caplog.records
    assert record.getMessage() == (
        "the C++ kernel of DRConv is not available, the torch kernel is used: there is no C++ compiler 'c++'; "
        "install g++ or name yours in CXX"
    )


def test_error_names_the_variable_that_chose_and_the_reason(
    no_extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(dtype=torch.float32)
    arguments = (*problem.tensors(), problem.geometry())
    monkeypatch.setenv("DRCONV_KERNEL", "cpu")
    with pytest.raises(ValueError, match=r"DRCONV_KERNEL=cpu cannot .* not available, as there is no C\+\+ compiler"):
        kernels.select(*arguments)
    with pytest.raises(ValueError, match=r"kernel='cpu' cannot .*; leave kernel empty"):
        kernels.select(*arguments, kernel="cpu")
    monkeypatch.setitem(kernels._MODULES, "triton", None)
    monkeypatch.setitem(kernels._failures, "triton", "No module named 'triton'")
    monkeypatch.setenv("DRCONV_KERNEL", "triton")
    with pytest.raises(ValueError, match=r"DRCONV_KERNEL=triton .* not available, .*No module named 'triton'"):
        kernels.select(*arguments)


def test_compiling_without_gradients_warns_of_nothing() -> None:
    layer = DRConv2d(4, 6, 1).eval()
    x = torch.randn(2, 4, 5, 5)
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = layer(x)
        actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(actual, expected)
