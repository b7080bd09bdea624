"""FlopCounterMode sees our operators with the counts of the equations, whatever kernel runs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from drconv.nn import DRConv2d, region_conv2d
from drconv.nn.kernels import cpu
from tests.oracle import random_problem

B, M, C, O, P = 2, 3, 4, 6, 20  # noqa: E741
ONE = 2 * B * P * C * O  # a product of every position with one filter


def count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def backward(leaves: list[Tensor], run: Callable[[], Tensor]) -> int:
    y = run()
    return count(lambda: torch.autograd.grad(y.sum(), leaves))


@pytest.fixture(params=["torch", "cpu"])
def kernel(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and not cpu.is_available():
        pytest.skip("no compiler")
    return request.param


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_forward_and_backward(kernel: str, kernel_size: int) -> None:
    p = random_problem(kernel=kernel_size, padding=kernel_size // 2, dtype=torch.float32)
    if kernel == "cpu" and kernel_size > 1:
        pytest.skip("left to torch")
    x, weight, logits, scale = (t.requires_grad_() for t in p.tensors())

    def run() -> Tensor:
        return region_conv2d(x, weight, logits, scale=scale, padding=kernel_size // 2, kernel=kernel)

    one = ONE * kernel_size**2
    assert count(run) == one
    of_scale = 2 * B * P * M if kernel == "torch" else 0  # its sums over a region's pixels are a matrix product
    assert backward([x, weight, logits, scale], run) == (M + 1) * one + of_scale  # Eq. 7 needs all responses
    logits.requires_grad_(False)
    assert backward([x, weight, scale], run) == 2 * one + of_scale
    weight.requires_grad_(False)
    assert backward([x, scale], run) == one + of_scale


def test_compiled_operators_count_alike() -> None:
    p = random_problem(dtype=torch.float32)
    assert count(lambda: torch.ops.drconv.region_conv2d_torch(*p.tensors(), [1, 1, 0, 0, 1, 1, 1])) == ONE
    arguments = (torch.randn(B, O, 5, 4), *p.tensors(), [1, 1, 0, 0, 1, 1, 1])
    for needs, products in (([True] * 4, M + 1), ([True, True, False, False], 2), ([False, True, False, False], 1)):
        assert count(lambda: torch.ops.drconv.region_conv2d_torch_backward(*arguments, needs)) == products * ONE  # noqa: B023


@pytest.mark.parametrize(
    ("options", "filters"),
    [({}, M * C), ({"generator": "experts", "experts": 5}, M * 5 * (C + C * O)), ({"scale": False}, 0)],
)
@pytest.mark.parametrize("guide", ["own", "shared"])
def test_layers_without_gradients(options: dict, filters: int, guide: str) -> None:
    """Output, filters and guide."""
    if not cpu.is_available():
        pytest.skip("no compiler")
    conv = DRConv2d(C, O, 1, regions=M, guide=guide, **options).eval()
    x, logits = torch.randn(1, C, 5, 4), torch.randn(1, M, 5, 4)
    with torch.no_grad():
        actual = count(lambda: conv(x, logits) if guide == "shared" else conv(x))
    assert actual == 2 * (P * C * O + filters + (0 if guide == "shared" else P * C * M))
