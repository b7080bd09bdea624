"""Training augmentation and evaluation transform of samples, on uint8 images (3, H, W).

The training transform has the semantics of torchvision's RandomResizedCrop, ColorJitter (without hue) and
RandomHorizontalFlip, which the ShuffleNetV2 recipe uses. The numbers are drawn from a ``random.Random`` that
the caller seeds for each sample, and not from a global generator: a sample is the same in any process and
order.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from drconv.config import AugmentConfig, DataConfig
from drconv.interfaces import Sample

INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)
GREY = 128  # of what AutoAugment moves in from outside, as in TensorFlow's
MAX_ASPECT = 8  # of a picture that is resized by its shorter side
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow

Box = tuple[int, int, int, int]


class EvalTransform:
    """Resize the shorter side to ``data.eval_resize`` and cut the central square of ``data.image_size``."""

    def __init__(self, config: DataConfig) -> None:
        self.size = config.image_size
        self.resize = config.eval_resize
        self.interpolation = INTERPOLATIONS[config.interpolation]

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Maps ``image`` (3, H, W) to (3, S, S); the seed is ignored."""
        return {**sample, "image": self.cut(sample["image"])}

    def cut(self, image: Tensor) -> Tensor:
        """(3, H, W) to (3, S, S)."""
        image = resize_shorter_side(image, self.resize, self.interpolation)
        return F.center_crop(image, [self.size, self.size]).contiguous()


class TrainTransform:
    """Random crop, rotation, colour jitter, flip and AutoAugment (Cubuk et al., CVPR 2019) as ``data.augment`` says."""

    def __init__(self, config: DataConfig) -> None:
        self.size = config.image_size
        self.options: AugmentConfig = config.augment
        self.interpolation = INTERPOLATIONS[config.interpolation]
        crops = {
            "random_resized": self._crop_random_resized,
            "pad": self._crop_padded,
            "none": self._crop_centre,
        }
        self._policy = v2.AutoAugment(fill=GREY) if config.augment.autoaugment else None
        self._uncropped = EvalTransform(config)
        self._crop: Callable[[Tensor, Random], Tensor] = crops[config.augment.crop]

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Maps ``image`` (3, H, W) to (3, S, S); the same seed gives the same bits."""
        return {**sample, "image": self.augment(sample["image"], Random(seed))}

    def augment(self, image: Tensor, random: Random) -> Tensor:
        """(3, H, W) to (3, S, S)."""
        augment = self.options
        image = self._crop(image, random)
        if augment.rotate:
            angle = random.uniform(-augment.rotate, augment.rotate)
            image = F.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        if any(augment.jitter):
            image = jitter_colours(image, augment.jitter, random)
        if augment.flip and random.random() < augment.flip:
            image = image.flip(-1)
        if self._policy is not None:
            with torch_seeded(random.getrandbits(63)):
                image = self._policy(image)
        return image.contiguous()

    def _crop_centre(self, image: Tensor, random: Random) -> Tensor:
        return self._uncropped.cut(image)

    def _crop_padded(self, image: Tensor, random: Random) -> Tensor:
        size = self.size
        image = F.pad(resize_shorter_side(image, size, self.interpolation), [self.options.crop_padding])
        top = random.randint(0, image.shape[1] - size)
        left = random.randint(0, image.shape[2] - size)
        return image[:, top : top + size, left : left + size]

    def _crop_random_resized(self, image: Tensor, random: Random) -> Tensor:
        top, left, height, width = random_resized_box(image.shape[1], image.shape[2], self.options, random)
        image = image[:, top : top + height, left : left + width]
        return F.resize(image, [self.size, self.size], interpolation=self.interpolation, antialias=True)


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """torchvision's transforms draw from torch's global generator; its state is put back afterwards."""
    generator = torch.default_generator
    former = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(former)


def random_resized_box(height: int, width: int, augment: AugmentConfig, random: Random) -> Box:
    """Draw the window of RandomResizedCrop: a share of the area and an aspect ratio, ten attempts, else the centre.

    Returns:
        top, left, height, width in pixels.
    """
    low, high = (math.log(ratio) for ratio in augment.crop_ratio)
    for _ in range(10):
        area = height * width * random.uniform(*augment.crop_scale)
        ratio = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    ratio = min(max(width / height, augment.crop_ratio[0]), augment.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def resize_shorter_side(image: Tensor, size: int, interpolation: InterpolationMode) -> Tensor:
    """Resize (3, H, W) so that the shorter side has ``size`` pixels; the aspect ratio is kept.

    Of a picture that is more than 8 times as long as wide only the middle is resized: 2,000 pixels beside one would
    become 256 x 512,000. Others are what torchvision makes of them.
    """
    shorter = min(image.shape[1:])
    if max(image.shape[1:]) > MAX_ASPECT * shorter:
        image = F.center_crop(image, [min(side, MAX_ASPECT * shorter) for side in image.shape[1:]])
    if shorter == size:
        return image
    return F.resize(image, [size], interpolation=interpolation, antialias=True)


def jitter_colours(image: Tensor, strengths: list[float], random: Random) -> Tensor:
    """Change brightness, contrast and saturation by factors from [1 - strength, 1 + strength], in random order.

    Each blends the picture with another: black, its mean grey, its own grey version. Values are clamped after
    each, as in Pillow, but rounded once at the end. One float buffer takes a third of the time of torchvision's three
    calls. Products and sums are separate: fused, they would round differently where threads divide the work.

    Args:
        image: uint8 (3, H, W).
        strengths: of brightness, contrast and saturation.
        random: the sample's generator.
    """
    factors = [random.uniform(max(0.0, 1 - strength), 1 + strength) for strength in strengths]
    pixels = image.float()
    for kind in random.sample((_BRIGHTNESS, _CONTRAST, _SATURATION), 3):
        factor = factors[kind]
        if kind == _BRIGHTNESS:
            pixels.mul_(factor)
        else:
            grey = (pixels[0] * _LUMA[0]).add_(pixels[1] * _LUMA[1]).add_(pixels[2] * _LUMA[2])
            if kind == _CONTRAST:
                grey = grey.mean(dtype=torch.float64).round_().float()
            pixels.mul_(factor).add_(grey.mul_(1 - factor))
        if factor > 1:  # a blend with a factor up to 1 stays in range
            pixels.clamp_(0, 255)
    # NumPy's conversion takes a seventh of the time of torch's.
    return torch.from_numpy(pixels.round_().numpy().astype(np.uint8))
