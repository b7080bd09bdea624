"""The Triton kernels, run by Triton's interpreter on the CPU, against the loop over positions.

The interpreter is chosen when triton is imported, so the tests need ``TRITON_INTERPRET=1`` from the start of the
process: without it the file runs itself, and what ``test_kernels.py`` asks of every kernel, in a process that has it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import Problem, random_problem, region_conv2d_loop, run_kernel

pytest.importorskip("triton")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in a process of its own, see below")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.mark.skipif(IS_INTERPRETED, reason="this is that process")
def test_under_the_interpreter() -> None:
    here = Path(__file__)
    files = [str(here), str(here.with_name("test_kernels.py"))]
    command = [sys.executable, "-m", "pytest", "-x", *files, "-k", "triton and not fp64"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=here.parents[1], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def assert_agrees(problem: Problem) -> None:
    """Output and four gradients, relative to the largest entry of each."""
    from drconv.nn.kernels import triton as kernel

    shape = (problem.x.shape[0], problem.weight.shape[2], *problem.logits.shape[2:])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(problem.x.dtype)
    assert kernel.supports(problem.x, problem.weight, problem.logits, problem.scale, problem.geometry())
    actual = run_kernel(kernel.region_conv2d, problem, grad)
    expected = region_conv2d_loop(problem, grad)
    for part, a, e in zip(
        ("output", "x", "weight", "logits", "scale"), actual.tensors(), expected.tensors(), strict=False
    ):
        error = (a.double() - e).abs().max().item() / max(1.0, e.abs().max().item())
        assert error <= TOLERANCE[problem.x.dtype], f"{part} is off by {error:.1e}"


@interpreted
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    batch=st.integers(1, 2),
    regions=st.integers(1, 32),
    channels=st.sampled_from([1, 3, 8, 16, 20, 33]),
    out_channels=st.sampled_from([1, 5, 16, 24, 70]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    per_sample=st.booleans(),
    channels_last=st.booleans(),
    scale=st.sampled_from(["none", "region", "tap"]),
    tilt=st.sampled_from([0.0, 20.0]),  # 20 sends every pixel to one region
)
def test_drawn_shapes(tilt: float, **shape: object) -> None:
    problem = random_problem(**shape)
    problem.logits[:, -1] += tilt
    assert_agrees(problem)


@interpreted
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["static", "per_sample"])
def test_every_type_filter_and_layout(dtype: torch.dtype, per_sample: bool, channels_last: bool) -> None:
    options = {"per_sample": per_sample, "dtype": dtype, "channels_last": channels_last}
    assert_agrees(random_problem(channels=40, out_channels=18, size=(4, 3), **options))


@interpreted
def test_several_tiles_per_region_and_several_partial_sums() -> None:
    assert_agrees(random_problem(channels=6, out_channels=4, regions=2, size=(11, 13), dtype=torch.float32))


@interpreted
def test_slice_of_the_channels() -> None:
    """The half of a channels-last tensor that ShuffleNetV2 hands to a branch: no copy, aligned to nothing."""
    problem = random_problem(channels=6, out_channels=6, dtype=torch.float32)
    whole = torch.zeros(2, 9, 5, 4).contiguous(memory_format=torch.channels_last)
    whole[:, 3:] = problem.x
    problem.x = whole[:, 3:]
    assert_agrees(problem)


@interpreted
@pytest.mark.parametrize("per_sample", [False, True])
def test_empty_batch(per_sample: bool) -> None:
    from drconv.nn.kernels import triton as kernel

    problem = random_problem(batch=0, per_sample=per_sample, dtype=torch.float32)
    answer = run_kernel(kernel.region_conv2d, problem, torch.zeros(0, 6, 5, 4))
    assert answer.output.shape == (0, 6, 5, 4)
    assert [t.shape for t in answer.tensors()[1:]] == [t.shape for t in problem.tensors()]
    assert not answer.weight.any()


@interpreted
@pytest.mark.parametrize("groups", [1, 3])
def test_sort_is_stable_and_complete(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stable sort of the mask, over more blocks than are added up at once."""
    from drconv.nn.kernels import triton_sort

    monkeypatch.setattr(triton_sort, "block_of", lambda pixels, regions: 16)
    monkeypatch.setattr(triton_sort, "HISTOGRAMS", 2)
    logits = torch.randn(3, 5, 7, 11).round()  # rounded for ties
    order, starts = triton_sort.sort_pixels(logits, groups)
    mask = logits.argmax(1).reshape(groups, -1)
    pixels = mask.shape[1]
    expected = torch.sort(mask, dim=1, stable=True).indices + pixels * torch.arange(groups)[:, None]
    assert torch.equal(order.long(), expected)
    counts = torch.stack([row.bincount(minlength=5) for row in mask])
    assert torch.equal(starts[:, 1:].long(), counts.cumsum(1))
    assert not starts[:, 0].any()


@interpreted
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "fp16", "bf16"])
def test_frozen_guide_pays_no_products_for_the_logits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One region's scale is 0: its gradient is not."""
    from drconv.nn.kernels import triton as kernel

    problem = random_problem(dtype=dtype, channels_last=True)
    problem.scale[:, 1] = 0
    grad = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = region_conv2d_loop(problem, grad)
    monkeypatch.setattr(kernel, "logits_gradient", None)
    leaves = [t.requires_grad_() for t in (problem.x, problem.weight, problem.scale)]
    output = kernel.region_conv2d(problem.x, problem.weight, problem.logits, problem.scale, problem.geometry())
    for actual, e in zip(
        torch.autograd.grad(output, leaves, grad), (expected.x, expected.weight, expected.scale), strict=True
    ):
        error = (actual.double() - e).abs().max().item() / max(1.0, e.abs().max().item())
        assert error <= TOLERANCE[dtype]
    assert expected.scale[:, 1].abs().min() > 0.1


@interpreted
def test_layers_that_share_logits_share_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where somebody vouches for them, and never after a change that PyTorch counts."""
    from drconv.nn.kernels import triton as kernel
    from drconv.nn.kernels.sharing import shared

    calls = []
    sort = kernel.triton_sort.sort_pixels
    monkeypatch.setattr(kernel.triton_sort, "sort_pixels", lambda *args: calls.append(1) or sort(*args))
    problem = random_problem(dtype=torch.float32)

    def check(expected_calls: int) -> None:
        calls.clear()
        for _ in range(2):
            tensors = (problem.x, problem.weight, problem.logits, problem.scale)
            output = kernel.region_conv2d(*tensors, problem.geometry())
            expected = region_conv2d_loop(problem, torch.zeros(2, 6, 5, 4)).output
            torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
        assert len(calls) == expected_calls

    check(2)
    with shared(problem.logits):
        check(1)
        problem.logits.neg_()  # the same tensor with other values
        check(1)
        with torch.inference_mode():
            check(0)
        with shared(torch.zeros(1)):
            check(2)
        check(0)
    problem.logits.numpy()[:] *= -1  # nobody counts this
    check(2)


@interpreted
def test_a_block_shares_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    from drconv.nn import DRConv2d, Guide, GuidedSequential
    from drconv.nn.kernels import VARIABLE
    from drconv.nn.kernels import triton as kernel

    calls = []
    sort = kernel.triton_sort.sort_pixels
    layers = [DRConv2d(4, 4, 1, guide="shared", regions=3) for _ in range(2)]
    block = GuidedSequential(torch.nn.Sequential(*layers), Guide(4, 3))
    monkeypatch.setenv(VARIABLE, "triton")
    x = torch.randn(2, 4, 5, 4)
    block(x)  # tried out before its first use
    monkeypatch.setattr(kernel.triton_sort, "sort_pixels", lambda *args: calls.append(1) or sort(*args))
    actual = block(x)
    assert len(calls) == 1
    monkeypatch.setenv(VARIABLE, "reference")
    torch.testing.assert_close(actual, block(x), rtol=1e-4, atol=1e-5)


@interpreted
def test_logits_that_are_no_numbers_choose_as_argmax_does() -> None:
    """Output, and the gradient of the scale, which finds the region again."""
    from drconv.nn.kernels import triton as kernel

    torch.manual_seed(0)
    problem = random_problem(regions=5, dtype=torch.float32)
    problem.logits[torch.rand(problem.logits.shape) < 0.2] = torch.nan
    scale = problem.scale.requires_grad_()
    logits = problem.logits.clone().requires_grad_()
    y = kernel.region_conv2d(problem.x, problem.weight, logits, scale, problem.geometry())
    (of_scale,) = torch.autograd.grad(y.sum(), scale)
    problem.logits = torch.nn.functional.one_hot(problem.logits.argmax(1), 5).movedim(3, 1).float()
    expected = region_conv2d_loop(replace(problem, scale=scale.detach()), torch.ones_like(y))
    torch.testing.assert_close(y.double(), expected.output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_scale.double(), expected.scale, rtol=1e-4, atol=1e-4)


@interpreted
def test_what_32_bits_cannot_count_is_declined() -> None:
    from drconv.nn.kernels import triton as kernel

    geometry = random_problem().geometry()
    weight, scale = torch.empty(1, 2, 64, 64, 1, 1, device="meta"), None

    def supports(*shape: int) -> bool:
        x = torch.empty(shape, device="meta").to(memory_format=torch.channels_last)
        fake = type("OnCpu", (), {})  # the size of a map that no machine here holds
        fake.is_cuda, fake.device, fake.dtype = False, torch.device("cpu"), x.dtype
        fake.shape, fake.stride, fake.__len__ = x.shape, x.stride, lambda self: shape[0]
        return kernel.supports(fake(), weight, torch.empty(0), scale, geometry)

    assert supports(1, 64, 1024, 1024)
    assert not supports(1, 64, 8192, 8192)
    assert not supports(70_000, 64, 1, 1)


@interpreted
def test_compiles_without_a_graph_break() -> None:
    from drconv.nn.kernels import triton as kernel

    problem = random_problem(dtype=torch.float32, channels_last=True)
    leaves = [t.requires_grad_() for t in problem.tensors()]

    def network(*tensors: torch.Tensor) -> torch.Tensor:
        return kernel.region_conv2d(*tensors, problem.geometry()).relu()

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(network(*leaves).square().sum(), leaves)
    actual = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@interpreted
def test_operators_describe_themselves_to_the_compiler() -> None:
    from drconv.nn.kernels import triton as kernel

    x, weight, logits, scale = random_problem(dtype=torch.float32, channels_last=True, size=(3, 3)).tensors()
    filters, gradient = weight.flatten(3), torch.randn(2, 6, 3, 3)
    order, starts = kernel.sort_pixels(logits, 1)
    torch.library.opcheck(kernel.sort_pixels, (logits, 2))
    leaves = [t.requires_grad_() for t in (x, filters, logits, scale)]
    torch.library.opcheck(kernel.convolve, (*leaves, order, starts))
    x, filters, logits, scale = (t.detach() for t in leaves)
    torch.library.opcheck(kernel.filter_gradient, (x, gradient, scale, order, starts))
    torch.library.opcheck(kernel.logits_gradient, (x, gradient, filters, logits, scale))
