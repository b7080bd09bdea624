"""Planted regions: the measures against plain loops, and the default form, which has to find what is planted."""

import math
import random
from collections import Counter

import pytest
import torch

from drconv.planted.fit import Setting, run
from drconv.planted.forms import DRCONV_FORMS, make_layer
from drconv.planted.measure import explained_variance, linear_fit, mutual_information, planted_masks
from drconv.planted.teacher import PlantedLayer, draw_maps, plant

SHORT = {"steps": 500}


@pytest.mark.parametrize("regions", [4, 8, 16])
def test_default_form_recovers_planted_regions(regions: int) -> None:
    found = run("default", Setting(regions=regions, **SHORT), seed=0)
    assert found["explained"] >= 0.99, found
    assert found["agreement"] >= 0.95, found


def test_the_bar_can_be_missed() -> None:
    """A batch norm on the logits asks sixteen regions to win equally often where there are four."""
    found = run("four_parts", Setting(regions=16, steps=300), seed=0)
    assert found["explained"] < 0.95
    assert found["agreement"] < 0.8
    assert found["largest_share"] < 0.2


def test_a_linear_map_explains_the_share_that_filters_have_in_common() -> None:
    """Four independent filters in about equal use: their mean has a quarter of their variance."""
    assert run("linear", Setting(), seed=0)["explained"] == pytest.approx(0.25, abs=0.08)


def test_mutual_information() -> None:
    random.seed(0)
    first = [random.randrange(4) for _ in range(300)]
    second = [(label if random.random() < 0.7 else random.randrange(5)) for label in first]
    n, joint, a, b = len(first), Counter(zip(first, second, strict=True)), Counter(first), Counter(second)
    information = sum(c / n * math.log(c * n / (a[x] * b[y])) for (x, y), c in joint.items())
    entropies = [-sum(c / n * math.log(c / n) for c in counts.values()) for counts in (a, b)]
    expected = information / (sum(entropies) / 2)
    assert mutual_information(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected)
    renamed = torch.tensor([(3, 0, 2, 1)[label] for label in first])
    assert mutual_information(torch.tensor(first), renamed) == pytest.approx(1)
    assert mutual_information(torch.zeros(9), torch.ones(9)) == 1


def test_explained_variance_and_the_linear_fit() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 3, 5, 6), torch.randn(7, 3, 1, 1), torch.randn(7)
    target = torch.nn.functional.conv2d(x, weight, bias)
    assert explained_variance(linear_fit(x, target, x), target) == pytest.approx(1)
    noise = torch.randn_like(target)
    means, errors = target.mean((0, 2, 3), keepdim=True), noise.square().sum()
    expected = 1 - errors / (target - means).square().sum()
    assert explained_variance(target + noise, target) == pytest.approx(float(expected), rel=1e-4)
    assert explained_variance(means.expand_as(target), target) == pytest.approx(0, abs=1e-6)


def test_teacher_filters_every_position_by_its_region() -> None:
    generator = torch.Generator().manual_seed(3)
    layer, x = PlantedLayer(4, generator), draw_maps(2, generator)
    y, mask = layer(x), layer.mask(x)
    for b, h, w in ((0, 0, 0), (1, 5, 7), (0, 11, 3)):
        region = int((layer.guide @ x[b, :, h, w]).argmax())
        assert mask[b, h, w] == region
        torch.testing.assert_close(y[b, :, h, w], layer.filters[region] @ x[b, :, h, w])
    network = plant(4, 3, generator)
    assert len(planted_masks(network, x)) == 3
    assert network(x).std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("form", DRCONV_FORMS)
def test_forms_build(form: str) -> None:
    assert make_layer(form, 16, 4)(torch.randn(1, 16, 3, 3)).shape == (1, 16, 3, 3)
