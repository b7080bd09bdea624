"""scripts/roofline.py: the floor of a layer by hand, and the page that prints it."""

import pytest

from drconv.config import ModelConfig
from models import create_model
from scripts.benchmarking.generated import read_block
from scripts.roofline import BACKWARD, DEVICES, FORWARD, Layer, find_places, floor, page


def test_floor_of_a_layer_by_hand() -> None:
    """Two images of 10 positions, 4 -> 6 channels, 3 regions, bf16: all of it is bound by memory."""
    layer, device = Layer(channels=4, out_channels=6, regions=3, positions=10), DEVICES[0]
    pixels, filters = 20, 3 * 4 * 6
    logits, order, mask = 4 * 3 * pixels, 4 * pixels, pixels
    product = 2 * (4 * pixels + 6 * pixels + filters) + order
    sort = logits + mask + mask + order  # the mask is written, then read
    guide = 2 * (4 * pixels + 6 * pixels + filters) + 2 * logits
    assert floor(layer, 2, "bf16", device, FORWARD) == pytest.approx((sort + product) / 1.555e12)
    assert floor(layer, 2, "bf16", device, BACKWARD) == pytest.approx((2 * product + guide) / 1.555e12)


def test_wide_layers_are_bound_by_arithmetic() -> None:
    layer, device = Layer(channels=4096, out_channels=4096, regions=8, positions=49), DEVICES[1]
    product = 2 * 128 * 49 * 4096 * 4096
    assert floor(layer, 128, "bf16", device, ("of logits",)) == pytest.approx(8 * product / 989.4e12)
    assert floor(layer, 128, "fp32", device, ("of x",)) == pytest.approx(3 * product / 494.7e12)


def test_experts_pay_for_the_filters_of_every_image() -> None:
    """By hand: two images, 2 experts, 3 regions, 4 -> 6 channels, bf16."""
    layer, device = Layer(channels=4, out_channels=6, regions=3, positions=10, experts=2), DEVICES[0]
    pixels, filters, experts = 20, 2 * 3 * 4 * 6, 2 * 4 * 6
    assert floor(layer, 2, "bf16", device, ("mix",)) == pytest.approx(2 * (experts + filters) / 1.555e12)
    moved = 2 * (4 * pixels + 6 * pixels + filters) + 4 * pixels
    assert floor(layer, 2, "bf16", device, ("output",)) == pytest.approx(moved / 1.555e12)
    assert layer.kernels(2, 2)["mix"][0] == 2 * 2 * 3 * 2 * 4 * 6  # multiply and add, images, regions, experts


def test_places_know_the_real_sizes() -> None:
    network = create_model(ModelConfig("mobilefacenet", conv="drconv"), 10, 112)
    places = find_places(network, 224)
    assert sum(places.values()) == 30
    assert {place.size for place in places} == {(56, 48), (28, 24), (14, 12), (7, 6)}


def test_page_prints_these_numbers() -> None:
    assert page() == read_block("floor")
