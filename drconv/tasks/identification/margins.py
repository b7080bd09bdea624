"""Margins on the cosine of the true class, and the loss to expect before anything is learned.

With c = cos(theta) between an embedding and the weight of its class, s the scale and m the margin, the logit of the
true class is s * psi(c), that of the others s * c:

- ``am_softmax`` and ``cosface``: psi = c - m. The two papers found the same loss.
- ``arcface``: psi = cos(theta + m) up to theta = pi - m. Beyond that cos(theta + m) would rise again and reward a wrong
  answer; psi = -2 - cos(theta + m) there goes on falling, and is continuous with its derivative.
"""

import math

import torch
from torch import Tensor

MARGINS = ("am_softmax", "cosface", "arcface")
_LEAST_SINE = 1e-3  # of theta; below it (0.06 degrees) the slope of ArcFace's margin is held


def apply_margin(cosine: Tensor, margin: float, kind: str) -> Tensor:
    """psi of the true class's cosines, (N,) float32 in [-1, 1].

    ArcFace's slope d psi / d c = sin(theta + m) / sin(theta) has no end at theta = 0. The sine is held at 0.001, so the
    gradient is finite at c = 1; the gradient of an embedding, which carries a factor sin(theta), is bounded anyway.
    """
    if kind != "arcface":
        return cosine - margin
    sine = (1 - cosine.square()).clamp(min=_LEAST_SINE**2).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), shifted, -2 - shifted)


def expected_first_loss(num_classes: int, embedding: int, scale: float, margin: float, kind: str) -> float:
    """Mean loss of random embeddings and class weights.

    Cosines are then normal with variance 1 / D, so the mean of exp(s c) is exp(s^2 / 2D) as long as the largest of C
    draws reaches the part of the distribution that makes this mean; beyond that the largest draw alone counts.
    """
    target = apply_margin(torch.zeros(1), margin, kind).item()
    spread, reach = scale / math.sqrt(embedding), math.sqrt(2 * math.log(max(2, num_classes)))
    logit = spread**2 / 2 if spread < reach else spread * reach - reach**2 / 2
    others = math.log(max(1, num_classes - 1)) + logit
    return others - scale * target + math.log1p(math.exp(scale * target - others))


def least_scale(num_classes: int, probability: float = 0.9) -> float:
    """The scale from which the softmax can give the true class this probability, others orthogonal."""
    share = (num_classes - 1) / num_classes
    return share * math.log((num_classes - 1) * probability / (1 - probability))
