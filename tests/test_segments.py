"""Sorted rows: the exact layout of a CPU and the padded one of other devices, against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drconv.nn.kernels import segments
from drconv.nn.kernels import torch as kernel
from tests.oracle import random_problem, region_conv2d_loop, run_kernel

LAYOUTS = [segments._sort_exact, segments._sort_padded]


@pytest.mark.parametrize("sort", LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 700),
    num_segments=st.sampled_from([1, 2, 8, 70, 300]),
    groups=st.integers(1, 2),
    used=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_products_per_segment(sort, count: int, num_segments: int, groups: int, used: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, min(used, num_segments), (count,), generator=generator)
    rows = torch.randn(count, groups, 3, generator=generator, dtype=torch.float64)
    left = torch.randn(count, groups, 2, generator=generator, dtype=torch.float64)
    matrices = torch.randn(num_segments, groups, 3, 2, generator=generator, dtype=torch.float64)
    layout = sort(ids, num_segments)
    slots = segments.gather(rows, layout)
    assert torch.equal(slots.index_select(0, layout.slot), rows)
    products = segments.multiply(slots, matrices, layout).index_select(0, layout.slot)
    torch.testing.assert_close(products, torch.einsum("ngd,ngde->nge", rows, matrices[ids]))
    sums = torch.zeros(num_segments, groups, 2, 3, dtype=torch.float64)
    sums.index_add_(0, ids, torch.einsum("nge,ngd->nged", left, rows))
    torch.testing.assert_close(segments.outer(segments.gather(left, layout), slots, layout), sums)


@pytest.mark.parametrize("count", [100, 5000, 40000])
@pytest.mark.parametrize("num_segments", [8, 1000])
def test_rows_of_a_segment_keep_their_order(count: int, num_segments: int) -> None:
    """Short, padded and long inputs of the CPU's sort."""
    ids = torch.randint(0, num_segments, (count,), generator=torch.Generator().manual_seed(0))
    layout = segments.sort(ids, num_segments)
    assert torch.equal(layout.source, ids.argsort(stable=True))
    assert layout.lengths == torch.bincount(ids, minlength=num_segments).tolist()


@pytest.mark.parametrize(
    "options", [{}, {"per_sample": True, "groups": 2}, {"kernel": 3, "padding": 1, "scale": "tap"}]
)
def test_kernel_on_the_padded_layout(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of other devices, run on the CPU."""
    monkeypatch.setattr(segments, "sort", segments._sort_padded)
    problem = random_problem(batch=3, size=(6, 7), **options)
    grad = torch.randn(3, 6, *problem.logits.shape[2:], dtype=torch.float64)
    actual = run_kernel(kernel.region_conv2d, problem, grad)
    for a, e in zip(actual.tensors(), region_conv2d_loop(problem, grad).tensors(), strict=True):
        torch.testing.assert_close(a, e)
