"""The networks against published counts, torchvision's network and the authors' own definitions."""

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn

import models
from drconv.config import CondConvConfig, DRConvConfig, ModelConfig
from drconv.errors import ConfigError
from models.mobilefacenet import MobileFaceNet
from models.mobilenetv1 import build_mobilenetv1
from models.mobilenetv2 import build_mobilenetv2
from models.shufflenetv2 import ShuffleNetV2, channels_of, split_shuffled
from models.torchvision_weights import load_torchvision

BUILDERS = {"shufflenetv2": ShuffleNetV2, "mobilenetv1": build_mobilenetv1, "mobilenetv2": build_mobilenetv2}


def multiply_adds(network: nn.Module, height: int, width: int) -> int:
    """Counts convolutions and linear layers by what they really do in a forward pass."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, height, width))
    return total


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [
        ("shufflenetv2", 0.5, 40.48),
        ("shufflenetv2", 1.0, 145.81),
        ("shufflenetv2", 1.5, 298.97),
        ("shufflenetv2", 2.0, 590.78),
        ("mobilenetv2", 0.25, 37.20),
        ("mobilenetv2", 0.5, 97.13),
        ("mobilenetv2", 0.75, 209.07),
        ("mobilenetv2", 1.0, 300.77),
        ("mobilenetv1", 0.25, 41.03),
        ("mobilenetv1", 0.5, 149.50),
        ("mobilenetv1", 0.75, 325.40),
        ("mobilenetv1", 1.0, 568.74),
    ],
)
def test_plain_networks_have_the_published_multiply_adds(name: str, width: float, millions: float) -> None:
    assert multiply_adds(BUILDERS[name](width), 224, 224) / 1e6 == pytest.approx(millions, abs=0.006)


def test_mobilefacenet_has_the_published_size() -> None:
    network = MobileFaceNet()
    assert multiply_adds(network, 112, 96) / 1e6 == pytest.approx(189.41, abs=0.006)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(0.9996, abs=5e-5)
    assert network(torch.zeros(2, 3, 112, 96)).shape == (2, 128)


@pytest.mark.parametrize(("width", "millions"), [(0.5, 1.4), (1.0, 2.3), (1.5, 3.5), (2.0, 7.4)])
def test_shufflenetv2_has_the_published_parameters(width: float, millions: float) -> None:
    assert round(sum(p.numel() for p in ShuffleNetV2(width).parameters()) / 1e6, 1) == millions


def randomise(network: nn.Module) -> None:
    """Weights and statistics as different over the channels as those of a trained network."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)


def test_torchvision_weights_give_equal_outputs() -> None:
    torch.manual_seed(0)
    reference = torchvision.models.shufflenet_v2_x0_5(num_classes=7).double().eval()
    randomise(reference)
    network = ShuffleNetV2(0.5, num_classes=7).double().eval()
    load_torchvision(network, reference.state_dict())
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    y = reference(x)
    assert y.std(0).max() > 1e-2  # the pictures differ, so the comparison says something
    torch.testing.assert_close(network(x), y, rtol=1e-12, atol=1e-12)


def test_torchvision_wider_networks_are_refused() -> None:
    state = torchvision.models.shufflenet_v2_x1_0().state_dict()
    with pytest.raises((RuntimeError, IndexError)):
        load_torchvision(ShuffleNetV2(1.0), state)


def test_split_is_the_authors_shuffle() -> None:
    x = torch.randn(2, 12, 3, 5)
    batch, channels, height, width = x.shape
    rows = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
    expected = rows.reshape(2, batch, channels // 2, height, width)
    torch.testing.assert_close(torch.stack(split_shuffled(x)), expected, rtol=0, atol=0)


def test_shufflenetv2_starts_as_its_authors_did() -> None:
    torch.manual_seed(0)
    network = ShuffleNetV2(1.0)
    assert network.conv1[0].weight.detach().std() == pytest.approx(0.01, rel=0.1)
    assert network.conv5[0].weight.detach().std() == pytest.approx(1 / 464, rel=0.02)
    assert network.stage3[1].branch2[3].weight.detach().std() == pytest.approx(1, rel=0.1)  # depthwise: one input each
    assert network.stage2[0].branch2[1].bias.tolist() == pytest.approx([1e-4] * 58)
    assert network.fc.bias is None
    assert [ShuffleNetV2(width).dropout.p for width in (0.5, 2.0)] == [0.0, 0.2]


def test_widths_between_the_published_ones_grow_evenly() -> None:
    widths = [0.25, 0.3, 0.5, 0.62, 1.0, 1.2, 1.5, 1.9, 2.0]
    sizes = [sum(p.numel() for p in ShuffleNetV2(width, 10).parameters()) for width in widths]
    assert sizes == sorted(sizes)
    assert all(c % 2 == 0 for width in widths for c in channels_of(width))
    with pytest.raises(ValueError, match=r"0\.25 to 2\.0"):
        channels_of(2.5)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_small_stem_keeps_the_resolution(name: str) -> None:
    sizes = {}
    for image_size in (64, 65):
        network = models.create_model(ModelConfig(name, 0.5), num_classes=5, input_size=image_size).eval()
        inputs: list[Tensor] = []
        network.get_submodule(network.replaceable_layers[0]).register_forward_pre_hook(
            lambda _, args, inputs=inputs: inputs.append(args[0])
        )
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
        sizes[image_size] = inputs[0].shape[-1]
    assert sizes == {64: 64, 65: {"shufflenetv2": 16}.get(name, 32)}
    stem = models.create_model(ModelConfig(name, 0.5, stem="small"), 5, 224)
    assert next(m for m in stem.modules() if isinstance(m, nn.Conv2d)).stride == (1, 1)


@pytest.mark.parametrize(
    ("name", "layers", "guides"),
    [("shufflenetv2", 32, 16), ("mobilenetv2", 34, 18), ("mobilenetv1", 13, 13), ("mobilefacenet", 30, 15)],
)
def test_layers_and_guides_of_the_paper(name: str, layers: int, guides: int) -> None:
    """Decisions D2 and D3: one guide per block, or per layer where a block has one."""
    plain = models.create_model(ModelConfig(name), 10, 224)
    assert len(plain.replaceable_layers) == len(set(plain.replaceable_layers)) == layers
    assert all(plain.get_submodule(layer).kernel_size == (1, 1) for layer in plain.replaceable_layers)
    network = models.create_model(ModelConfig(name, conv="drconv"), 10, 224)
    kinds = [type(module).__name__ for module in network.modules()]
    assert (kinds.count("DRConv2d"), kinds.count("Guide")) == (layers, guides)


@pytest.mark.parametrize("conv", ["drconv", "condconv", "deformable"])
@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_every_form_trains(name: str, conv: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(name, 0.25, conv=conv, drconv=DRConvConfig(regions=2), condconv=CondConvConfig(2))
    network = models.create_model(config, num_classes=3, input_size=32)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_condconv_replaces_the_classifier_of_the_mobilenets() -> None:
    for name, classifier in (("mobilenetv1", "classifier"), ("mobilenetv2", "classifier.1")):
        network = models.create_model(ModelConfig(name, conv="condconv"), 10, 224)
        head = network.get_submodule(classifier)
        assert "CondConv2d" in {type(module).__name__ for module in head.modules()}


def test_unknown_network_lists_near_names() -> None:
    with pytest.raises(ConfigError, match="shufflenetv2"):
        models.create_model(ModelConfig("shuflenetv2"), 10, 224)
    with pytest.raises(ConfigError, match=r"model\.width=9"):
        models.create_model(ModelConfig("shufflenetv2", 9.0), 10, 224)


def test_import_is_cheap() -> None:
    """torchvision and timm take seconds and are imported when a network of theirs is built."""
    code = "import sys, models; print([m for m in ('torchvision', 'timm', 'models.timm_registry') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
