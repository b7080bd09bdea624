"""substitute() on many networks, and what it promises for each layer."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from drconv.nn import (
    CondConv2d,
    DRConv2d,
    Guide,
    GuidedSequential,
    LocalConv2d,
    RoutedSequential,
    count_cost,
    is_pointwise,
    substitute,
)
from drconv.nn.substitute import KINDS
from models.mobilenetv2 import build_mobilenetv2
from models.shufflenetv2 import ShuffleNetV2
from scripts.networks import NETWORKS, Example


def _small_network() -> ShuffleNetV2:
    torch.manual_seed(0)
    return ShuffleNetV2(0.25, num_classes=5, small_stem=True)


def _settle(network: nn.Module, size: int = 32) -> nn.Module:
    """Give batch norms statistics other than their start."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(8, 3, size, size))
    return network.eval()


@pytest.mark.parametrize("example", NETWORKS, ids=lambda example: example.name)
def test_networks_of_the_libraries(example: Example) -> None:
    torch.manual_seed(0)
    network = example.build(num_classes=4)
    other = copy.deepcopy(network).eval()
    keys = set(network.state_dict())
    table = substitute(network, "drconv", example.select(), regions=2, input_size=example.smallest)
    replaced = {row.name for row in table if row.kind == "DRConv2d"}
    kept = {key for key in keys if key.rpartition(".")[0] not in replaced}
    assert kept <= set(network.state_dict())
    assert table.note is None
    x = torch.randn(2, 3, example.smallest, example.smallest)
    network.train()(x).square().sum().backward()
    for name in replaced:
        assert network.get_submodule(name).weight.grad is not None, name
    network.eval()
    substitute(other, "drconv", example.select(), regions=2, input_size=example.smallest)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(other(x), y)
        torch.testing.assert_close(copy.deepcopy(network)(x), y)


@pytest.mark.parametrize("conv", KINDS)
@pytest.mark.parametrize("options", [{}, {"sharing": "own"}, {"generator": "experts"}], ids=str)
def test_pretrained_filters_leave_the_output_unchanged(conv: str, options: dict[str, Any]) -> None:
    options = dict(options)
    if "sharing" in options:
        options = {{"drconv": "guide", "condconv": "routing"}.get(conv, ""): options["sharing"]}
    if (conv != "drconv" and "generator" in options) or "" in options:
        pytest.skip("an option of another layer")
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    expected = _settle(network)(x)
    layers = [name for name, module in network.named_modules() if is_pointwise(name, module)]
    layers += ["features.4.conv.1.0", "features.5.conv.1.0"]  # 3 x 3 depthwise, strides 2 and 1
    substitute(network, conv, layers, from_pretrained=True, input_size=32, **options)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", KINDS)
def test_geometry_type_mode_and_format_are_kept(conv: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, "valid", bias=False),
        nn.Conv2d(8, 8, (3, 5), padding="same", dilation=2, groups=4),
        nn.Conv2d(8, 8, 3, padding=(2, 0), groups=8),
    )
    if conv == "deformable":
        network[1] = nn.Conv2d(8, 8, 5, padding="same", dilation=2, groups=4)
    network = network.double().eval().to(memory_format=torch.channels_last)
    network[2].train()
    x = torch.randn(2, 4, 21, 17, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = network(x)
    biases = [layer.bias for layer in network]
    substitute(network, conv, "*", from_pretrained=True, input_size=(4, 21, 17))
    assert [type(layer) for layer in network] == [KINDS[conv]] * 3
    assert [layer.training for layer in network] == [False, False, True]
    assert [layer.bias is None for layer in network] == [bias is None for bias in biases]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    torch.testing.assert_close(network(x), expected)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("conv", KINDS)
def test_new_filters_have_the_spread_of_the_old_ones(conv: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 1))
    nn.init.normal_(network[0].weight, std=0.7)
    nn.init.constant_(network[0].bias, 3.0)
    options = {"init_gain": 1.0} if conv == "drconv" else {}
    substitute(network, conv, "0", input_size=(64, 4, 4), **options)
    x = torch.randn(64, 64, 4, 4)
    gain = {"condconv": 0.5 * 8**0.5}.get(conv, 1.0)  # eight independent experts at weights of one half
    y = network(x)
    torch.testing.assert_close(y.mean(), torch.tensor(3.0), rtol=0.1, atol=0)
    torch.testing.assert_close(y.std(), torch.tensor(0.7 * 8 * gain), rtol=0.1, atol=0)


def test_a_block_shares_one_guide() -> None:
    network = build_mobilenetv2(0.25, num_classes=5)
    keys = set(network.state_dict())
    table = substitute(network, input_size=32)
    guided = [name for name, module in network.named_modules() if isinstance(module, GuidedSequential)]
    assert guided == [f"features.{i}.conv" for i in range(2, 18)]
    own = {name for name, module in network.named_modules() if isinstance(module, DRConv2d) and module.guide}
    assert own == {"features.1.conv.1", "features.18.0"}
    assert sum(isinstance(module, Guide) for module in network.modules()) == 18
    added = set(network.state_dict()) - keys
    assert all(".guide." in key or ".generator." in key for key in added)
    assert keys <= set(network.state_dict())
    assert [row.kind for row in table].count("Guide") == 16
    network = build_mobilenetv2(0.25, num_classes=5)
    substitute(network, input_size=32, guide="own")
    assert not any(isinstance(module, GuidedSequential) for module in network.modules())


def test_a_block_in_two_steps() -> None:
    """The layer replaced first keeps its own guide; the shared one stands on the block's input, whatever is there."""
    block = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 24, 1))
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(block))
    substitute(network, "drconv", "1.0.0", input_size=8)
    substitute(network, "drconv", ["1.0.2", "1.0.3"], input_size=8)
    first, *others = (network.get_submodule(f"1.0.{index}") for index in (0, 2, 3))
    head = network.get_submodule("1.0").guide
    assert head.weight.shape[1] == 8
    assert first.guide is not None
    assert all(other.guide is None for other in others)
    x = torch.randn(2, 3, 8, 8)
    output = network(x)
    with torch.no_grad():
        torch.testing.assert_close(network(x), output)
        features = network[0](x)
        y = first(features).relu()
        for other in others:
            y = other(y, head(features))
        torch.testing.assert_close(y, output)


def test_blocks_with_squeeze_and_excitation_share_and_whole_networks_do_not() -> None:
    network = torchvision.models.regnet_y_400mf(num_classes=4)
    substitute(network, "condconv", "trunk_output.*.f.[ac].0", input_size=32, experts=2)
    routed = [module for module in network.modules() if isinstance(module, RoutedSequential)]
    assert len(routed) == sum(name.endswith(".f") for name, _ in network.named_modules())
    assert hasattr(routed[0], "se")
    network = torchvision.models.densenet121(num_classes=4)
    substitute(network, "drconv", "features.transition?.conv", input_size=32, regions=2)
    assert all(network.get_submodule(f"features.transition{i}.conv").guide is not None for i in (1, 2, 3))


def test_the_table_agrees_with_the_counter() -> None:
    for conv in ("drconv", "condconv", "deformable"):
        network = _small_network()
        before = count_cost(network, 32)
        table = substitute(network, conv, input_size=32)
        after = count_cost(network, 32)
        assert (
            table.total("parameters_after") - table.total("parameters_before") == after.parameters - before.parameters
        )
        difference = table.total("multiply_adds_after") - table.total("multiply_adds_before")
        assert difference == after.multiply_adds - before.multiply_adds
        counted = {layer.name: layer.multiply_adds for layer in after.layers}
        assert all(counted[row.name] == row.multiply_adds_after for row in table)
        assert len(str(table).splitlines()) == len(table) + 2


def test_a_network_that_cannot_be_run_is_still_substituted() -> None:
    table = substitute(_small_network(), input_size=(7, 32, 32))
    assert table.total("multiply_adds_after") is None
    assert "does not take an input" in str(table)


def test_frozen_networks_stay_frozen_with_their_norms() -> None:
    network = build_mobilenetv2(0.25, 5).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    substitute(network, layers=is_pointwise)
    assert not [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    norms = [module for module in network.modules() if type(module) is nn.BatchNorm2d]
    assert norms
    assert not any(norm.training for norm in norms)
    conv = nn.Sequential(nn.Conv2d(3, 4, 1))
    conv[0].bias.requires_grad_(False)
    substitute(conv, layers="0")
    assert conv[0].weight.requires_grad
    assert not conv[0].bias.requires_grad


def test_a_convolution_in_two_blocks_owns_its_guide() -> None:
    shared = nn.Conv2d(3, 3, 1)
    blocks = [nn.Sequential(shared, nn.ReLU(), nn.Conv2d(3, 3, 1)) for _ in range(2)]
    network = nn.Sequential(nn.Sequential(*blocks))
    substitute(network, layers=is_pointwise, input_size=8)
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_lazy_layers_elsewhere_stay_lazy() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    table = substitute(network, layers="0")
    assert "lazy" in table.note
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 2)


def test_options_reach_layers_and_guides() -> None:
    network = _small_network()
    options = {"guide_norm": "batch", "guide_gradient": 0.5, "feature_gradient": 0.0, "guide_stride": 2}
    substitute(network, input_size=32, regions=4, guide_frozen=True, generator_bias=True, **options)
    guide = network.stage2[0].branch2.guide
    assert guide.weight.shape[0] == 4
    assert (guide.gradient, guide.feature_gradient, guide.stride) == (0.5, 0.0, (2, 2))
    assert guide.norm is not None
    assert not guide.weight.requires_grad
    assert network.stage2[0].branch2[0].filter_bias is not None
    network = _small_network()
    substitute(network, input_size=32, groups=2)
    assert network.stage2[0].branch2[0].groups == 2


def test_frozen_layers_stay_frozen_and_shared_layers_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    network = Twice().requires_grad_(False)
    (row,) = substitute(network, "condconv", "first", input_size=8)
    assert network.first is network.second
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert row.multiply_adds_before == 2 * 64 * 9


@pytest.mark.parametrize("conv", ["drconv", "condconv"])
def test_pickle_and_ddp(conv: str, tmp_path: Path) -> None:
    network = _small_network().eval()
    substitute(network, conv, input_size=32)
    x = torch.randn(2, 3, 32, 32)
    y = network(x)
    torch.testing.assert_close(pickle.loads(pickle.dumps(network))(x), y)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        torch.testing.assert_close(wrapped(x), y)
        wrapped.train()(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("conv", KINDS)
def test_torch_compile_finds_one_graph(conv: str) -> None:
    block = _small_network().stage2[1].eval()
    channels = block.branch2[0].in_channels
    substitute(block, conv, "branch2.*", input_size=(2 * channels, 8, 8))
    x = torch.randn(2, 2 * channels, 8, 8)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


def test_errors_say_why_and_leave_the_network_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        nn.LazyConv2d(4, 1),
        nn.Linear(4, 4),
        nn.Conv2d(4, 4, 1),
    )
    reasons = {"0": "one side more", "1": "reflect", "2": "parametrization", "3": "lazy", "4": "is a Linear"}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"^{name} cannot be replaced.*{reason}"):
            substitute(network, layers=["5", name], input_size=(3, 8, 8))
        assert type(network[5]) is nn.Conv2d
    network = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"matches no convolution; did you mean layer1\.0\.conv1"):
        substitute(network, layers="layer1.0.cnv1")
    with pytest.raises(ValueError, match="was chosen; its convolutions are conv1, "):
        substitute(network, layers=lambda name, module: False)
    with pytest.raises(ValueError, match="ResNet has no list replaceable_layers"):
        substitute(network)
    with pytest.raises(ValueError, match="conv='drconf' is not known; use one of drconv, condconv"):
        substitute(network, "drconf", "layer1.*")
    with pytest.raises(ValueError, match="region is not an option of conv='drconv'; it knows regions"):
        substitute(network, layers="layer1.*", region=4)
    with pytest.raises(ValueError, match="guide='shared' is not known; use 'block' or 'own'"):
        substitute(network, layers="layer1.*", guide="shared")
    with pytest.raises(ValueError, match="groups=2 changes the filters"):
        substitute(network, layers="layer1.*", groups=2, from_pretrained=True)


def test_local_needs_one_input_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2))
    network.append(network[0])
    with pytest.raises(ValueError, match=r"^0 cannot be a local convolution: it sees \(4, 4\), \(8, 8\)"):
        substitute(network, "local", "0", input_size=8)
    network = _small_network()
    substitute(network, "local", ["stage4.3.branch2.*"], input_size=32)
    assert isinstance(network.stage4[3].branch2[5], LocalConv2d)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_half_precision_condconv_in_a_network() -> None:
    network = _small_network().bfloat16().eval()
    substitute(network, "condconv", input_size=32)
    assert isinstance(network.stage2[0].branch2, RoutedSequential)
    assert isinstance(network.stage2[0].branch2[0], CondConv2d)
    assert network(torch.randn(2, 3, 32, 32).bfloat16()).dtype == torch.bfloat16


def test_predicates_see_convolutions_only() -> None:
    """So that they may ask for what only convolutions have."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU())
    rows = list(substitute(network, layers=lambda name, module: module.kernel_size == (1, 1), input_size=16))
    assert [row.name for row in rows] == ["0"]
    plain = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no Conv2d at all"):
        substitute(plain, layers=lambda name, module: True)
