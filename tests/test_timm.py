"""The networks as timm's users call them: what timm's own tests ask of a network, TorchScript apart.

The gate takes the narrowest network of each kind. All names: ``DRCONV_TIMM_NAMES='*' pytest tests/test_timm.py``.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.layers import create_feature_extractor, get_graph_node_names
from timm.models import resolve_model_input_args
from torch import Tensor, nn

import models
import models.timm_registry
from drconv.model_files import load_model_config
from drconv.weights import save_weights

NARROW = """
drconv_shufflenetv2_x0_25 condconv_mobilenetv[12]_x0_25 drconv_released_mobilenetv1_x0_25 drconv_mobilenetv2_x0_25
drconv_mobilenetv1_short mobilefacenet drconv_detnas_300m
"""
CHOSEN = os.environ.get("DRCONV_TIMM_NAMES", NARROW).split()
ALL = timm.list_models(module="timm_registry", include_tags=True)
NAMES = [name for name in ALL if any(fnmatchcase(name, pattern) for pattern in CHOSEN)]

every_network = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    torch.manual_seed(0)


def draw(network: Any, batch: int, at_most: int) -> Tensor:
    """Pictures of the network's own size, or smaller ones where it takes any."""
    channels, *size = network.default_cfg["input_size"]
    if not network.default_cfg["fixed_input_size"]:
        size = [min(side, at_most) for side in size]
    return torch.randn(batch, channels, *size)


@every_network
def test_output_is_finite(name: str) -> None:
    network = timm.create_model(name).eval()
    with torch.no_grad():
        y = network(draw(network, 1, 224))
    assert y.shape == (1, network.default_cfg["num_classes"])
    assert y.isfinite().all()


@every_network
def test_every_parameter_learns(name: str) -> None:
    network = timm.create_model(name, num_classes=42).train()
    y = network(draw(network, 2, 128))
    y.mean().backward()
    assert y.shape == (2, 42)
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@every_network
@torch.no_grad()
def test_configuration_says_what_the_network_is(name: str) -> None:
    network = timm.create_model(name).eval()
    config, names = network.default_cfg, network.state_dict().keys()
    assert {f"{config['classifier']}.weight", f"{config['first_conv']}.weight"} <= names
    x = draw(network, 1, 448)
    features = network.forward_features(x)
    assert features.shape == (1, network.num_features, *config["pool_size"])
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, network.head_hidden_size)
    network.reset_classifier(0)
    torch.testing.assert_close(network(x), pooled)
    assert network.num_classes == 0
    network.reset_classifier(0, "")
    torch.testing.assert_close(network(x), features)
    network.reset_classifier(6, "avg")
    assert network.eval()(x).shape == (1, 6)
    assert network.get_classifier().weight.shape[0] == 6
    bare = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert bare(x).shape == features.shape


@every_network
@torch.no_grad()
def test_features_are_as_announced(name: str) -> None:
    network = timm.create_model(name, features_only=True).eval()
    x = draw(network, 1, 96)
    maps = network(x)
    strides = network.feature_info.reduction()
    assert len(maps) == len(strides) >= 4
    for y, channels, stride in zip(maps, network.feature_info.channels(), strides, strict=True):
        assert y.shape == (1, channels, *(-(-side // stride) for side in x.shape[2:]))
        assert y.isfinite().all()


@every_network
def test_fx_traces_it(name: str) -> None:
    """Up to our layers, whose work depends on what the guide chooses."""
    network = timm.create_model(name, num_classes=3).eval()
    x = draw(network, 2, 128)
    train_nodes, eval_nodes = get_graph_node_names(network)
    with torch.no_grad():
        expected = network(x)
        traced = create_feature_extractor(network, [eval_nodes[-1]]).eval()
        assert torch.equal(*traced(x).values(), expected)
    traced = create_feature_extractor(network.train(), [train_nodes[-1]]).train()
    next(iter(traced(x).values())).mean().backward()
    assert all(p.grad is not None for p in traced.parameters())


@pytest.mark.parametrize(
    "name", ["drconv_shufflenetv2_x0_25", "mobilenetv1_x0_25", "mobilenetv2_x0_25", "mobilefacenet"]
)
def test_other_channels_start_alike(name: str) -> None:
    network = timm.create_model(name, in_chans=5, num_classes=2).eval()
    size = network.default_cfg["input_size"][1:]
    assert network(torch.randn(1, 5, *size)).shape == (1, 2)
    first = network.default_cfg["first_conv"]
    ours, usual = (n.get_submodule(first).weight.detach() for n in (network, timm.create_model(name)))
    assert ours.std() == pytest.approx(float(usual.std()), rel=0.15)


def test_both_spellings_are_the_file() -> None:
    spelled = {"drconv_shufflenetv2_x0_25": "drconv_shufflenetv2_0.25x", "mobilenetv2_x1_0": "mobilenetv2_1.0x"}
    spelled["condconv_shufflenetv2_x1_0"] = "condconv_shufflenetv2_1x"
    for name, file in spelled.items():
        ours = models.create_model(load_model_config(file), 7, 224).state_dict()
        for given in (name, file):
            theirs = timm.create_model(given, num_classes=7).state_dict()
            assert {n: p.shape for n, p in theirs.items()} == {n: p.shape for n, p in ours.items()}
    assert len([name for name in ALL if name.startswith("drconv_shufflenetv2")]) == 5 + 5
    assert not timm.list_models("*fpn*", module="timm_registry")


def test_options_of_the_convolution_and_wrong_ones() -> None:
    assert timm.create_model("drconv_shufflenetv2_x0_25", regions=4).stage2[0].branch2.guide.weight.shape[0] == 4
    with pytest.raises(TypeError, match="takes no option regions"):
        timm.create_model("shufflenetv2_x0_25", regions=4)
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("drconv_shufflenetv2_x0_25", pretrained=True)
    with pytest.raises(ValueError, match="global_pool='max' is unknown"):
        timm.create_model("shufflenetv2_x0_25", num_classes=0, global_pool="max")
    with pytest.raises(ValueError, match="needs global_pool='avg'"):
        timm.create_model("shufflenetv2_x0_25", global_pool="")


@pytest.mark.parametrize("file", ["drconv_shufflenetv2_0.25x", "condconv_mobilenetv2_0.25x", "drconv_mobilefacenet"])
@torch.no_grad()
def test_weights_of_a_run_load_as_timms_validation_loads_them(file: str, tmp_path: Path) -> None:
    """The way of timm's validate.py: name, checkpoint, classes; RGB from 0 to 1 through its own configuration."""
    is_face = "face" in file
    ours = models.create_model(load_model_config(file), 10, None if is_face else 224).eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
    save_weights(tmp_path / "model.safetensors", ours, {"output_names": list("abcdefghij")})
    given = resolve_model_input_args(file, {}, num_classes=128 if is_face else 10)
    theirs = timm.create_model(**given, checkpoint_path=tmp_path / "model.safetensors").eval()
    config = resolve_data_config(theirs.default_cfg)
    pixels = torch.randint(0, 256, (2, *config["input_size"])).float()
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    seen = (pixels - 127.5) / 128 if is_face else pixels.flip(1)  # as the recipes' data have them: ImageNet's is BGR
    torch.testing.assert_close(theirs((pixels / 255 - mean) / std), ours(seen), rtol=1e-4, atol=1e-4)
