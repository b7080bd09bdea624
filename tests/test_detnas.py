"""DetNAS-300M against the numbers of its authors, and as a member of the families of networks."""

import pytest
import torch
from torch import nn

import models
from drconv.config import DRConvConfig, ModelConfig
from drconv.errors import ConfigError
from drconv.nn import DRConv2d
from drconv.nn.cost import count_cost
from models.detnas import CHANNELS, DetNASBackbone, build_detnas


def test_cost_is_the_published_one() -> None:
    """321.2M multiply-adds with the classifier, 3.50M parameters without those of batch norm."""
    network = build_detnas()
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert sum(p.numel() for p in network.parameters()) - norms == 3_503_000
    assert count_cost(network, (3, 224, 224)).multiply_adds == 321_219_008


def test_maps_have_the_strides_of_a_pyramid() -> None:
    maps = DetNASBackbone().eval()(torch.zeros(1, 3, 64, 96))
    shapes = [tuple(x.shape[1:]) for x in maps.values()]
    assert shapes == [(c, 64 // s, 96 // s) for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)]


def test_drconv_replaces_the_main_branches_and_shares_their_guides() -> None:
    config = ModelConfig("detnas_300m", conv="drconv", drconv=DRConvConfig(regions=4))
    network = models.create_model(config, 10, 64)
    replaced = [name for name, module in network.named_modules() if isinstance(module, DRConv2d)]
    assert len(replaced) == 46
    assert all(".main." in name for name in replaced)
    assert not any(network.get_submodule(name).guide for name in replaced)  # every block has two or more
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert not unused


def test_a_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.width=1.0, found 0.5"):
        models.create_model(ModelConfig("detnas_300m", 0.5), 10, 224)
