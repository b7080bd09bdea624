"""The augmentation against torchvision's own transforms, and its determinism."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2

from drconv.config import AugmentConfig, DataConfig
from drconv.tasks.classification.transforms import EvalTransform, TrainTransform, jitter_colours, random_resized_box


def smooth_picture(height: int = 60, width: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (1, 3, 6, 9), generator=generator).float()
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255)[0].byte()


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def augment(transform: TrainTransform, image: Tensor, seed: int) -> Tensor:
    """The image of a transformed sample, of which nothing else changes."""
    sample = transform({"image": image, "label": 3}, seed)
    assert sample["label"] == 3
    return sample["image"]


def config_with(size: int = 32, resize: int = 40, interpolation: str = "bilinear", **augment: object) -> DataConfig:
    options = AugmentConfig(**augment)  # type: ignore[arg-type]
    return DataConfig(image_size=size, eval_resize=resize, interpolation=interpolation, augment=options)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (40, 41), (20, 25)])
def test_evaluation_is_pillows_resize_and_centre_crop(interpolation: str, height: int, width: int) -> None:
    image = smooth_picture(height, width)
    reference = v2.Compose([v2.Resize(40, v2.InterpolationMode(interpolation)), v2.CenterCrop(32), v2.PILToTensor()])
    ours = EvalTransform(config_with(interpolation=interpolation)).cut(image)
    assert ours.shape == (3, 32, 32)
    assert (ours.int() - reference(to_pillow(image)).int()).abs().max() <= 2


def test_training_crop_is_pillows_resized_crop() -> None:
    config = config_with(flip=0.0)
    image = smooth_picture()
    for seed in range(20):
        box = random_resized_box(60, 90, config.augment, Random(seed))
        reference = v2.functional.resized_crop(to_pillow(image), *box, size=[32, 32])
        difference = augment(TrainTransform(config), image, seed).int() - v2.functional.pil_to_tensor(reference).int()
        assert difference.abs().max() <= 2


def test_training_crop_has_torchvisions_distribution() -> None:
    """Quantiles of area, aspect ratio and position of 4,000 windows each; a tenth is rejected at these sides."""
    image, augment, random = torch.empty(1, 60, 90), AugmentConfig(), Random(0)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([random_resized_box(60, 90, augment, random) for _ in range(4000)])
    for feature in (
        lambda box: box[:, 2] * box[:, 3] / 5400,
        lambda box: np.log(box[:, 3] / box[:, 2]),
        lambda box: box[:, 0] / 60,
        lambda box: box[:, 1] / 90,
    ):
        levels = np.linspace(0.05, 0.95, 10)
        assert np.abs(np.quantile(feature(ours), levels) - np.quantile(feature(theirs), levels)).max() < 0.035


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_any_window_lies_in_the_picture(height: int, width: int, seed: int) -> None:
    top, left, h, w = random_resized_box(height, width, AugmentConfig(), Random(seed))
    assert top >= 0
    assert left >= 0
    assert 0 < h <= height - top
    assert 0 < w <= width - left


def test_jitter_is_pillows_chain() -> None:
    """The factors are drawn first, then the order; Pillow truncates after each of the three."""
    image = smooth_picture()
    functions = [v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation]
    for seed in range(40):
        random = Random(seed)
        factors = [random.uniform(0.6, 1.4) for _ in range(3)]
        expected = to_pillow(image)
        for kind in random.sample(range(3), 3):
            expected = functions[kind](expected, factors[kind])
        difference = jitter_colours(image, [0.4] * 3, Random(seed)).int() - v2.functional.pil_to_tensor(expected).int()
        assert difference.abs().max() <= 4
        assert difference.float().mean().abs() < 2


def test_jitter_of_one_kind_and_its_limits() -> None:
    image = smooth_picture()
    assert torch.equal(jitter_colours(image, [0.0, 0.0, 0.0], Random(0)), image)
    grey = (image.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)

    class Zero(Random):
        def uniform(self, a: float, b: float) -> float:
            return a

    assert jitter_colours(image, [1.0, 0.0, 0.0], Zero()).max() == 0
    assert jitter_colours(image, [0.0, 1.0, 0.0], Zero()).unique().tolist() == [round(float(grey.mean()))]
    assert (jitter_colours(image, [0.0, 0.0, 2.0], Zero()).float() - grey).abs().max() <= 0.51


def test_padding_crop_shifts_by_up_to_the_padding() -> None:
    image = torch.arange(1, 257, dtype=torch.int64).clamp(max=255).byte().view(1, 16, 16).expand(3, -1, -1)
    transform = TrainTransform(config_with(16, 16, crop="pad", crop_padding=2, flip=0.0))
    padded = torch.nn.functional.pad(image, [2] * 4)
    windows = {padded[0, i : i + 16, j : j + 16].numpy().tobytes(): (i, j) for i in range(5) for j in range(5)}
    seen = {windows[augment(transform, image, seed)[0].numpy().tobytes()] for seed in range(400)}
    assert len(seen) == 25


def test_flip_rotation_and_no_crop() -> None:
    image = smooth_picture(40, 40)
    plain = EvalTransform(config_with()).cut(image)
    flipped = augment(TrainTransform(config_with(crop="none", flip=1.0)), image, 3)
    assert torch.equal(flipped, plain.flip(-1))
    flips = [torch.equal(augment(TrainTransform(config_with(crop="none")), image, seed), plain) for seed in range(400)]
    assert abs(sum(flips) - 200) < 4 * math.sqrt(100)
    turned = TrainTransform(config_with(crop="none", flip=0.0, rotate=20.0))
    angle = Random(7).uniform(-20, 20)
    expected = v2.functional.rotate(plain, angle, interpolation=v2.InterpolationMode.BILINEAR)
    assert torch.equal(augment(turned, image, 7), expected)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_a_seed_fixes_every_bit_and_global_generators_are_left_alone(crop: str) -> None:
    transform = TrainTransform(config_with(crop=crop, jitter=[0.4] * 3, rotate=5.0))
    image = smooth_picture(61, 47)
    before = torch.get_rng_state()
    first = augment(transform, image, 11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(augment(transform, image, 11), first)
    assert not torch.equal(augment(transform, image, 12), first)
    assert first.shape == (3, 32, 32)
    assert first.is_contiguous()
