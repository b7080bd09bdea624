"""Every available kernel against the loop over positions: the same output and the same four gradients.

The Triton kernel runs here only where TRITON_INTERPRET=1 is set, as ``test_triton_interpreter.py`` does.
"""

import functools
import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drconv.nn import kernels
from tests.oracle import Answer, Problem, random_problem, region_conv2d_loop, run_kernel


def _available() -> list[str]:
    names = ["reference", "torch"]
    probe = random_problem(dtype=torch.float32)
    cpu = kernels.load("cpu")
    if cpu is not None and cpu.supports(*probe.tensors(), probe.geometry()):
        names.append("cpu")
    if os.environ.get("TRITON_INTERPRET") == "1" and kernels.load("triton") is not None:
        names.append("triton")
    return names


NAMES = _available()
LAYOUTS = (torch.contiguous_format, torch.channels_last)
Solution = tuple[Problem, torch.Tensor, Answer]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def solve(problem: Problem) -> Solution:
    """The problem with a drawn gradient of its output and the loop's answer."""
    shape = (problem.x.shape[0], problem.weight.shape[2], *problem.logits.shape[2:])
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(problem.x.dtype)
    return problem, grad, region_conv2d_loop(problem, grad)


@functools.cache
def solved_case(case: str, dtype: torch.dtype) -> Solution:
    """Solved once for all kernels: the loop takes longer than they do."""
    return solve(random_problem(dtype=dtype, **CASES[case]))


def is_supported(name: str, problem: Problem) -> bool:
    tensors = (problem.x, problem.weight, problem.logits, problem.scale)
    return kernels.load(name).supports(*tensors, problem.geometry())


def assert_conforms(name: str, solution: Solution) -> None:
    """Compare with the loop, relative to the largest entry of each tensor; skip what the kernel declines."""
    problem, grad, expected = solution
    if not is_supported(name, problem):
        pytest.skip(f"{name} does not support this")
    actual = run_kernel(kernels.load(name).region_conv2d, problem, grad)
    parts = ("output", "x", "weight", "logits", "scale")
    for part, a, e in zip(parts, actual.tensors(), expected.tensors(), strict=False):
        assert a.shape == e.shape
        error = (a.double() - e).abs().max().item() if e.numel() else 0.0
        limit = TOLERANCE[problem.x.dtype] * max(1.0, e.abs().max().item() if e.numel() else 0.0)
        assert error <= limit, f"{name}: {part} is off by {error:.2e}, allowed {limit:.2e}"
    assert actual.output.dtype == problem.x.dtype
    assert actual.x.dtype == actual.weight.dtype == problem.x.dtype
    assert actual.logits.dtype == problem.logits.dtype


CASES = {
    "plain": {},
    "no_scale": {"scale": "none"},
    "channels_last": {"channels_last": True, "size": (7, 9)},
    "one_region": {"regions": 1},
    "many_regions": {"regions": 32, "size": (4, 6), "batch": 1},
    "batch_1": {"batch": 1},
    "one_position": {"size": (1, 1)},
    "groups": {"groups": 2},
    "stride": {"stride": 2, "size": (7, 5)},
    "window": {"kernel": 3, "padding": 1},
    "window_tap": {"kernel": 3, "padding": 1, "scale": "tap", "stride": 2},
    "dilation": {"kernel": 3, "padding": 2, "dilation": 2, "groups": 2, "scale": "tap"},
    "depthwise": {"kernel": 3, "padding": 1, "groups": 4, "out_channels": 4},
    "per_sample": {"per_sample": True, "scale": "none"},
    "per_sample_scale": {"per_sample": True, "groups": 2},
    "per_sample_window": {"per_sample": True, "kernel": 3, "padding": 1, "scale": "tap"},
    "odd_channels": {"channels": 5, "out_channels": 7, "size": (9, 11), "regions": 8},
    "wide": {"channels": 70, "out_channels": 65, "regions": 4, "size": (6, 7)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_equations(name: str, dtype: torch.dtype, case: str) -> None:
    assert_conforms(name, solved_case(case, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("case", ["plain", "window_tap", "per_sample_scale"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str, case: str, dtype: torch.dtype) -> None:
    assert_conforms(name, solved_case(case, dtype))


@settings(max_examples=25, deadline=None)
@given(
    data=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 3),
            "regions": st.sampled_from([1, 2, 3, 5, 8, 9, 32]),
            "kernel": st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "size": st.tuples(st.integers(5, 7), st.integers(5, 7)),
            "stride": st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
            "padding": st.integers(0, 2) | st.tuples(st.integers(0, 2), st.integers(0, 2)),
            "dilation": st.integers(1, 2) | st.tuples(st.integers(1, 2), st.integers(1, 2)),
            "per_sample": st.booleans(),
            "channels_last": st.booleans(),
            "scale": st.sampled_from(["none", "region", "tap"]),
            "seed": st.integers(0, 10**6),
        }
    ),
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_drawn_shapes(data: dict, groups: int, widths: tuple[int, int]) -> None:
    channels, out_channels = (groups * width for width in widths)
    for dtype in (torch.float64, torch.float32):
        problem = random_problem(channels=channels, out_channels=out_channels, groups=groups, dtype=dtype, **data)
        solution = solve(problem)
        for name in NAMES:
            if is_supported(name, problem):
                assert_conforms(name, solution)


@pytest.mark.parametrize("name", NAMES)
def test_ties_go_to_the_lowest_region(name: str) -> None:
    problem = random_problem(regions=4, dtype=torch.float32)
    problem.logits = problem.logits.round().clamp(-1, 0)
    assert_conforms(name, solve(problem))
    problem.logits = torch.zeros_like(problem.logits)
    assert_conforms(name, solve(problem))


@pytest.mark.parametrize("name", NAMES)
def test_unused_regions_get_zero_gradient(name: str) -> None:
    problem = random_problem(regions=5, dtype=torch.float32)
    problem.logits[:, 3] = 50.0
    assert_conforms(name, solve(problem))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name: str, per_sample: bool) -> None:
    problem = random_problem(batch=0, per_sample=per_sample, kernel=3, padding=1, dtype=torch.float32)
    assert_conforms(name, solve(problem))


@pytest.mark.parametrize("name", NAMES)
def test_memory_format_is_kept(name: str) -> None:
    problem = random_problem(size=(6, 7), dtype=torch.float32)
    module = kernels.load(name)
    arguments = problem.tensors()[1:]
    for layout in LAYOUTS:
        x = problem.x.contiguous(memory_format=layout)
        output = module.region_conv2d(x, *arguments, problem.geometry())
        assert output.is_contiguous(memory_format=layout)
        assert not output.is_contiguous(memory_format=next(other for other in LAYOUTS if other != layout))


@pytest.mark.parametrize("name", NAMES)
def test_strided_input_and_gradient(name: str) -> None:
    """Views that are contiguous in no format, in and out of the operator."""
    problem = random_problem(size=(6, 5), dtype=torch.float32)
    wide = torch.randn(2, 8, 12, 5)
    wide[:, ::2, ::2] = problem.x
    problem.x = wide[:, ::2, ::2]
    problem.logits = problem.logits.transpose(2, 3).contiguous().transpose(2, 3)
    module = kernels.load(name)
    leaf = problem.x.detach().requires_grad_()
    output = module.region_conv2d(leaf, *problem.tensors()[1:], problem.geometry())
    grad = torch.randn(1, 6, 1, 1).expand(2, 6, 6, 5)
    (actual,) = torch.autograd.grad(output, leaf, grad)
    expected = region_conv2d_loop(problem, grad)
    torch.testing.assert_close(output.double(), expected.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.double(), expected.x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_one_column(name: str) -> None:
    """A sequence laid on its side: the stride of the dimension of one element says nothing about the pixels."""
    problem = random_problem(size=(7, 1), dtype=torch.float32)
    problem.x, problem.logits = (torch.empty(t.mT.shape).copy_(t.mT).mT for t in (problem.x, problem.logits))
    assert problem.x.stride()[2:] == problem.logits.stride()[2:] == (1, 7)
    grad = torch.randn(2, 6, 1, 7).mT
    leaves = [t.requires_grad_() for t in problem.tensors()]
    output = kernels.load(name).region_conv2d(*leaves, problem.geometry())
    gradients = torch.autograd.grad(output, leaves, grad)
    with torch.no_grad():
        expected = region_conv2d_loop(problem, grad)
    for actual, wanted in zip((output, *gradients), expected.tensors(), strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_asked_gradients(name: str) -> None:
    """Each subset of inputs that require a gradient works and gives what all together give."""
    problem = random_problem(dtype=torch.float32)
    module = kernels.load(name)
    grad = torch.randn(2, 6, 5, 4)
    expected = run_kernel(module.region_conv2d, problem, grad).tensors()[1:]
    for wanted in itertools.product([False, True], repeat=4):
        leaves = [t.clone().requires_grad_(want) for t, want in zip(problem.tensors(), wanted, strict=True)]
        output = module.region_conv2d(*leaves, problem.geometry())
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.backward(grad)
        for leaf, want, value in zip(leaves, wanted, expected, strict=True):
            assert (leaf.grad is None) == (not want)
            if want:
                torch.testing.assert_close(leaf.grad, value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic(name: str) -> None:
    problem = random_problem(batch=3, size=(9, 9), dtype=torch.float32)
    module = kernels.load(name)
    grad = torch.randn(3, 6, 9, 9)
    first = run_kernel(module.region_conv2d, problem, grad).tensors()
    again = run_kernel(module.region_conv2d, problem, grad).tensors()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_scale_of_any_layout(name: str) -> None:
    problem, grad, expected = solved_case("window_tap", torch.float64)
    assert problem.scale is not None
    turned = replace(problem, scale=problem.scale.mT.contiguous().mT)
    assert_conforms(name, (turned, grad, expected))
