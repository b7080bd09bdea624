"""The operator as the paper writes it, position by position, with the gradients of Eq. 7 and 8 by hand.

Nothing here uses convolutions, sorting or autograd, so that it shares no idea with the kernels it checks.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from drconv.nn.kernels.geometry import Geometry

Pair = tuple[int, int]


@dataclass
class Problem:
    """Arguments of a kernel; logits have the output's size."""

    x: Tensor
    weight: Tensor
    logits: Tensor
    scale: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.weight, self.logits, self.scale) if t is not None]

    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)


@dataclass
class Answer:
    output: Tensor
    x: Tensor
    weight: Tensor
    logits: Tensor
    scale: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.output, self.x, self.weight, self.logits, self.scale) if t is not None]


def region_conv2d_loop(p: Problem, grad_output: Tensor) -> Answer:
    """Output and all gradients in float64 by a loop over images and positions."""
    grad_output = grad_output.double()
    q = Problem(p.x.double(), p.weight.double(), p.logits.double(), p.scale, *p.geometry())
    batch, _, height, width = q.logits.shape
    q.scale = _per_tap(p)
    answer = Answer(
        torch.zeros(batch, q.weight.shape[2], height, width, dtype=torch.float64),
        torch.zeros_like(q.x),
        torch.zeros_like(q.weight),
        torch.zeros_like(q.logits),
        torch.zeros_like(q.scale),
    )
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        _position(q, answer, b, i, j, grad_output[b, :, i, j])
    if p.scale is None:
        answer.scale = None
    elif p.scale.dim() == 2:
        answer.scale = answer.scale.sum((2, 3))
    return answer


def _per_tap(p: Problem) -> Tensor:
    """The scale as (B, M, K, K)."""
    shape = (p.x.shape[0], p.weight.shape[1], *p.weight.shape[4:])
    if p.scale is None:
        return torch.ones(shape, dtype=torch.float64)
    scale = p.scale.double()
    return scale if scale.dim() == 4 else scale[:, :, None, None].expand(shape).clone()


def _position(p: Problem, answer: Answer, b: int, i: int, j: int, grad: Tensor) -> None:
    """Eq. 4-5 at one position: the first largest logit names the filter. Then the gradients."""
    logits = p.logits[b, :, i, j].tolist()
    chosen = logits.index(max(logits))
    filters = 0 if p.weight.shape[0] == 1 else b
    regions, out_channels, in_channels = p.weight.shape[1:4]
    responses = torch.zeros(regions, out_channels, dtype=torch.float64)  # of every region's filter, Eq. 7
    for g, u, v in itertools.product(range(p.groups), *map(range, p.weight.shape[4:])):
        row = i * p.stride[0] - p.padding[0] + u * p.dilation[0]
        column = j * p.stride[1] - p.padding[1] + v * p.dilation[1]
        if not (0 <= row < p.x.shape[2] and 0 <= column < p.x.shape[3]):
            continue
        ins = slice(g * in_channels, (g + 1) * in_channels)
        outs = slice(g * out_channels // p.groups, (g + 1) * out_channels // p.groups)
        pixel = p.x[b, ins, row, column]
        responses[:, outs] += p.scale[b, :, u, v, None] * (p.weight[filters, :, outs, :, u, v] @ pixel)
        scale, matrix = p.scale[b, chosen, u, v], p.weight[filters, chosen, outs, :, u, v]
        answer.x[b, ins, row, column] += scale * (matrix.T @ grad[outs])
        answer.weight[filters, chosen, outs, :, u, v] += scale * torch.outer(grad[outs], pixel)
        answer.scale[b, chosen, u, v] += grad[outs] @ matrix @ pixel
    answer.output[b, :, i, j] = responses[chosen]
    soft = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0)
    by_mask = responses @ grad  # Eq. 7, one number per region
    answer.logits[b, :, i, j] = (torch.diag(soft) - torch.outer(soft, soft)) @ by_mask  # Eq. 8


def random_problem(
    *,
    batch: int = 2,
    regions: int = 3,
    channels: int = 4,
    out_channels: int = 6,
    groups: int = 1,
    kernel: int | Pair = 1,
    size: Pair = (5, 4),
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    per_sample: bool = False,
    scale: str = "region",
    dtype: torch.dtype = torch.float64,
    channels_last: bool = False,
    seed: int = 0,
) -> Problem:
    """A drawn problem; ``scale`` is "none", "region" or "tap"."""
    taps, steps, border, spread = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, padding, dilation))
    generator = torch.Generator().manual_seed(seed)
    precise = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = draw(batch, channels, *size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    filters = batch if per_sample else 1
    weight = draw(filters, regions, out_channels, channels // groups, *taps) * channels**-0.5
    out = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(size, taps, steps, border, spread, strict=True)
    ]
    logits = draw(batch, regions, *out, dtype=precise)
    shapes = {"none": None, "region": (batch, regions), "tap": (batch, regions, *taps)}
    shape = shapes[scale]
    factors = None if shape is None else torch.sigmoid(draw(*shape, dtype=precise))
    return Problem(x, weight, logits, factors, steps, border, spread, groups)


def run_kernel(function, p: Problem, grad_output: Tensor) -> Answer:
    """Output and gradients of a kernel under autograd."""
    leaves = [t.detach().clone().requires_grad_() for t in p.tensors()]
    scale = leaves[3] if p.scale is not None else None
    output = function(leaves[0], leaves[1], leaves[2], scale, p.geometry())
    gradients = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
    return Answer(output.detach(), *gradients[:3], gradients[3] if scale is not None else None)
