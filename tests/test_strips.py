"""Large maps in strips: the same numbers as in one piece."""

import pytest
import torch

from drconv.nn.functional import region_conv2d
from drconv.nn.kernels import strips


@pytest.mark.parametrize("limit", [1, 2000, 20_000])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "groups"),
    [(3, 1, 1, 1, 1), (3, 2, 1, 1, 2), (5, 1, 2, 1, 1), (3, 2, 0, 2, 1), (2, 3, 1, 1, 1)],
)
@pytest.mark.parametrize("per_image", [False, True])
def test_strips_give_the_whole(
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    per_image: bool,
) -> None:
    torch.manual_seed(0)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "kernel": "torch"}
    x = torch.randn(3, 4, 11, 13, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(3 if per_image else 1, 4, 6, 4 // groups, kernel_size, kernel_size, dtype=torch.float64)
    scale = torch.rand(3, 4, kernel_size, kernel_size, dtype=torch.float64).requires_grad_()
    guide = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs = (x, filters.requires_grad_(), guide, scale)

    def run() -> list[torch.Tensor]:
        y = region_conv2d(*inputs[:3], scale=scale, **options)  # type: ignore[arg-type]
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        return [y, *torch.autograd.grad((y * weights).sum(), inputs)]

    expected = run()
    monkeypatch.setattr(strips, "LIMIT", limit)
    for found, value in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_large_maps_are_cut() -> None:
    x = torch.empty(2, 256, 200, 304, device="meta")
    weight, logits = torch.empty(1, 8, 256, 256, 3, 3), torch.empty(2, 8, 200, 304)
    geometry = strips.Geometry((1, 1), (1, 1), (1, 1), 1)
    pieces = strips.cut(x, weight, logits, geometry, copies=2)
    largest = max((piece.rows.stop - piece.rows.start) * 304 for piece in pieces) * 256 * 9 * 2
    assert largest <= strips.LIMIT
    assert len(strips.cut(x, weight[..., :1, :1], logits, geometry, copies=2)) == 1
