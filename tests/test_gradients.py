"""Gradient identities, against training with the parameters they stand for."""

import torch
from torch import Tensor, nn

from drconv.nn.gradients import scale_gradient, share_gradient


def loss_of(filters: Tensor, x: Tensor) -> Tensor:
    return (torch.einsum("moc,mbc->mbo", filters, x).square().sum((1, 2)) - 3).square().sum()


def test_outputs_are_untouched() -> None:
    x = torch.randn(4, 3, 2)
    assert torch.equal(scale_gradient(x, 0.3), x)
    assert torch.equal(share_gradient(x, 0.3), x)


def test_scaled_gradient() -> None:
    x = torch.randn(5, requires_grad=True)
    scale_gradient(x, 0.25).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 0.25 * 2 * x.detach())


def test_sharing_trains_a_common_filter_and_differences() -> None:
    """Ten steps of SGD with momentum on V equal ten on U and D_r at 0.7 and 0.3 of the rate, where V_r = U + D_r."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    start = 0.1 * torch.randn(4, 2, 3, dtype=torch.float64)
    filters = nn.Parameter(start.clone())
    common, differences = nn.Parameter(start[0].clone()), nn.Parameter(start - start[0])
    groups = [{"params": [common], "lr": 0.7e-3}, {"params": [differences], "lr": 0.3e-3}]
    optimizers = [torch.optim.SGD(p, lr=1e-3, momentum=0.9) for p in ([filters], groups)]
    for _ in range(10):
        loss_of(share_gradient(filters, 0.7), x).backward()
        loss_of(common + differences, x).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert (filters - start).abs().max() > 0.01
    torch.testing.assert_close(filters.data, (common + differences).data, rtol=1e-10, atol=1e-12)
