"""DetNAS-300M against the numbers of its authors, and as a member of the families of networks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from drconv.config import DRConvConfig, ModelConfig
from drconv.data import normalise
from drconv.engine.optimizer import parameter_groups
from drconv.errors import ConfigError
from drconv.nn import DRConv2d
from drconv.nn.cost import count_cost
from drconv.results.experiments import compose_config
from models import create_model
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


def test_the_detectors_recipe_is_its_authors() -> None:
    """maskrcnn-benchmark: twice the rate and no decay for every bias, batch norm's too; padding is black."""
    config = compose_config(Path(__file__).parents[1] / "configs", "table3/drconv_detnas_300m")
    network = create_model(replace(config.model, width=0.05), 80, None)
    groups = {id(p): group for group in parameter_groups(network, config.recipe.optimizer) for p in group["params"]}
    for name, parameter in network.named_parameters():
        group, is_bias = groups[id(parameter)], name.endswith("bias")
        assert (group["lr_factor"], group["weight_decay"]) == ((2.0, 0.0) if is_bias else (1.0, 1e-4)), name
    black = normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), config.data)
    assert black.eq(0).all()  # and zero is what Detection fills the padding with
    assert (config.recipe.steps, config.recipe.schedule.milestones) == (90000, [60000, 80000])
