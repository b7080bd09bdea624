"""A small drawn problem that shows whether a kernel can be trusted on a device, against ``reference`` in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from drconv.nn.kernels import reference
from drconv.nn.kernels.geometry import Geometry

PARTS = ("output", "x", "weight", "logits", "scale")
# Of the largest number: rounding of the type, three TF32 products or one, sums in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Geometry], Tensor]
_GEOMETRY = Geometry((1, 1), (0, 0), (1, 1), 1)


def draw(
    dtype: torch.dtype, device: torch.device, batch: int = 2, channels: int = 24, regions: int = 5, side: int = 9
) -> list[Tensor]:
    """x, weight, logits, scale and a gradient of the output; the global generators are left alone."""
    generator = torch.Generator().manual_seed(0)
    precise = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return [
        normal(batch, channels, side, side),
        normal(1, regions, channels, channels, 1, 1) / channels**0.5,
        normal(batch, regions, side, side, dtype=precise),
        normal(batch, regions, dtype=precise).sigmoid(),
        normal(batch, channels, side, side),
    ]


def errors(kernel: Kernel, tensors: list[Tensor]) -> dict[str, float]:
    """Largest error of the output and of each gradient, over the largest number of what is right."""
    actual = _run(kernel, tensors)
    expected = _run(reference.region_conv2d, [tensor.cpu().double() for tensor in tensors])
    return {
        part: float((a.cpu().double() - e).abs().max() / e.abs().max())
        for part, a, e in zip(PARTS, actual, expected, strict=True)
    }


def _run(kernel: Kernel, tensors: list[Tensor]) -> list[Tensor]:
    device = tensors[0].device.type
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors[:4]]
        x, weight, logits, scale = leaves
        output = kernel(x, weight, logits, scale, _GEOMETRY)
        gradients = torch.autograd.grad(output, leaves, tensors[4].clone())
        return [output.detach(), *gradients]


def complaint(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with a kernel, in one line, or None."""
    try:
        found = errors(kernel, draw(dtype, device))
    except Exception as error:  # whatever a compiler or driver may raise
        text = str(error).strip()
        return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    part = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
    if found[part] <= TOLERANCE[dtype]:
        return None
    return f"its {part} is off by {found[part]:.1e} in {str(dtype).removeprefix('torch.')} (of the largest number)"
