"""The operator at its ends: equal and huge logits, one region for all, constant and huge pictures; all kernels."""

import itertools

import pytest
import torch
from torch import Tensor

from drconv.nn import DRConv2d
from drconv.nn.functional import region_conv2d

KERNELS = ("reference", "torch", "cpu")
B, M, C, OUT, S = 2, 4, 8, 6, 5


def guides() -> dict[str, Tensor]:
    """Logits (B, M, S, S) as training can drive them."""
    drawn = torch.randn(B, M, S, S, generator=torch.Generator().manual_seed(0))
    one = torch.full((B, M, S, S), -50.0)
    one[:, 2] = 50.0
    two = drawn.clone()
    two[:, 1] = -1e4  # a region without a pixel
    return {"equal": torch.zeros(B, M, S, S), "huge": drawn * 1e30, "one region": one, "an empty region": two}


def gradients(kernel: str, x: Tensor, weight: Tensor, guide: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, guide)]
    output = region_conv2d(*leaves, kernel=kernel)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output.detach(), *(leaf.grad for leaf in leaves)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kernel"), itertools.product(guides(), KERNELS))
def test_guides_at_their_ends(name: str, kernel: str) -> None:
    """Eq. 4 and 7 in float64, position by position; the filters of a region without a pixel have no gradient."""
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(B, C, S, S, generator=generator), torch.randn(1, M, OUT, C, 1, 1, generator=generator)
    guide = guides()[name]
    output, _, grad_weight, grad_guide = gradients(kernel, x, weight, guide)
    candidates = torch.einsum("bchw,moc->bmohw", x.double(), weight[0, :, :, :, 0, 0].double())
    mask = guide.argmax(1)
    expected = candidates.gather(1, mask[:, None, None].expand(B, 1, OUT, S, S))[:, 0]
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(expected)
    soft = guide.double().softmax(1)
    inner = (candidates * grad_output[:, None]).sum(2)
    torch.testing.assert_close(
        grad_guide.double(), soft * (inner - (soft * inner).sum(1, keepdim=True)), rtol=1e-3, atol=1e-5
    )
    unused = [region for region in range(M) if not (mask == region).any()]
    assert name != "an empty region" or unused == [1]
    assert not grad_weight[0, unused].any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("content", ["constant", "huge", "zero", "denormal"])
def test_pictures_at_their_ends(content: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer in training, in bf16 too where the kernel has it: finite outputs and gradients."""
    monkeypatch.setenv("DRCONV_KERNEL", kernel)
    torch.manual_seed(0)
    layer = DRConv2d(C, OUT, 1, regions=M)
    value = {"constant": 3.0, "huge": 1e6, "zero": 0.0, "denormal": 1e-39}[content]
    for dtype in (torch.float32,) if kernel == "cpu" else (torch.float32, torch.bfloat16):
        layer.zero_grad()
        x = torch.full((B, C, S, S), value, requires_grad=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = layer(x)
        output.float().sum().backward()
        assert output.isfinite().all()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
        assert x.grad is not None
        assert x.grad.isfinite().all()
