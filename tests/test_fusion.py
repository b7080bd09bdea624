"""fuse_for_inference: the same outputs with fewer modules."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from drconv.config import ModelConfig
from drconv.nn import CondConv2d, DeformableKernelConv2d, DRConv2d, LocalConv2d, fuse_for_inference, substitute
from models import create_model


def settle(network: nn.Module, size: int = 64) -> nn.Module:
    """In evaluation mode and double precision, with running statistics and affine parameters that do something."""
    torch.manual_seed(0)
    network.double().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        network(torch.randn(4, 3, size, size, dtype=torch.float64))
    return network.eval()


def assert_fused_alike(network: nn.Module, size: int = 64) -> None:
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
        actual = fuse_for_inference(network)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"generator": "experts"}, {"generator_bias": True}, {"guide": "own"}])
def test_network_gives_the_same_output(options: dict[str, object]) -> None:
    network = create_model(ModelConfig(name="shufflenetv2", width=0.25), 10, 64)
    substitute(network, "drconv", **options)
    assert_fused_alike(settle(network))
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())  # the guides' own stay
    layers = [module for module in network.modules() if isinstance(module, DRConv2d)]
    assert layers
    assert all(layer.relu_limit for layer in layers)


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2"])
def test_library_network_gives_the_same_output(name: str) -> None:
    network = create_model(ModelConfig(name=name, width=0.25), 10, 32)
    substitute(network, "drconv", regions=2)
    assert_fused_alike(settle(network, 32), 32)
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())  # the guides' own stay


class Branching(nn.Module):
    """The convolution's output is used twice, so that its norm must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


def test_norm_stays_where_the_output_is_used_twice() -> None:
    network = settle(Branching(), 8)
    assert_fused_alike(network, 8)
    assert isinstance(network.norm, nn.BatchNorm2d)


class Undecided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_folded_stays() -> None:
    """Filters that are made before each call or used twice, norms that use the batch's statistics."""
    made = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    tied[2].weight = tied[0].weight
    watched = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    watched[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    for network in (made, tied, watched):
        assert_fused_alike(settle(network))
    training = settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    training[1].train()
    assert_fused_alike(training)


def test_rivals_are_passed_by() -> None:
    rivals = [CondConv2d(3, 4, 1), LocalConv2d(4, 4, 1, input_size=(64, 64)), DeformableKernelConv2d(4, 3, 1)]
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), *rivals)
    assert_fused_alike(settle(network))
    assert isinstance(network[1], nn.Identity)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"network\.eval\(\)"):
        fuse_for_inference(Branching())
    with pytest.raises(ValueError, match="Undecided cannot be traced"):
        fuse_for_inference(Undecided().eval())


@pytest.mark.parametrize(
    "after",
    [
        [nn.ReLU, lambda: nn.BatchNorm2d(8)],
        [lambda: nn.BatchNorm2d(8), nn.ReLU, lambda: nn.BatchNorm2d(8)],
        [nn.ReLU6, nn.ReLU, lambda: nn.BatchNorm2d(8), lambda: nn.BatchNorm2d(8)],
        [lambda: nn.BatchNorm2d(8), lambda: nn.BatchNorm2d(8)],
    ],
)
@pytest.mark.parametrize("first", [DRConv2d, nn.Conv2d])
def test_a_second_call_changes_nothing(first: type[nn.Module], after: list[Callable[[], nn.Module]]) -> None:
    network = settle(nn.Sequential(nn.Conv2d(3, 8, 1), first(8, 8, 1), *(make() for make in after)), 16)
    x = 4 * torch.randn(2, 3, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
        for _ in range(3):
            torch.testing.assert_close(fuse_for_inference(network)(x), expected)


class OtherNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class OtherConv(DRConv2d):
    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        return super().forward(x, guide).tanh()


class OtherReLU(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


@pytest.mark.parametrize(
    "layers",
    [
        [DRConv2d(3, 4, 1), OtherNorm(4)],
        [OtherConv(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()],
        [DRConv2d(3, 4, 1), nn.BatchNorm2d(4), OtherReLU()],
    ],
    ids=["norm", "convolution", "activation"],
)
def test_subclasses_stay(layers: list[nn.Module]) -> None:
    network = settle(nn.Sequential(*layers))
    assert_fused_alike(network)
    assert network[-1] is layers[-1]
    assert isinstance(network[1], nn.BatchNorm2d) or type(layers[0]) is DRConv2d


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("kind", ["forward", "pre", "global", "patched"])
def test_hooks_are_kept_and_see_what_they_saw(kind: str, target: int) -> None:
    network = settle(nn.Sequential(DRConv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    seen: list[Tensor] = []
    module, handle = network[target], None
    if kind == "forward":
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    elif kind == "pre":
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    elif kind == "patched":
        plain = module.forward
        module.forward = lambda x: (seen.append(x), plain(x))[1]
    else:
        hook = lambda module, inputs, output: seen.append(output) if module is network[target] else None  # noqa: E731
        handle = nn.modules.module.register_module_forward_hook(hook)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    try:
        with torch.no_grad():
            network(x)
            fuse_for_inference(network)
            seen = seen[:1]
            expected = list(seen)
            seen.clear()
            network(x)
    finally:
        if handle is not None:
            handle.remove()
    torch.testing.assert_close(seen, expected)


def test_hooks_of_a_container_see_what_they_saw() -> None:
    network = settle(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)))
    seen: list[Tensor] = []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output) or None)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(fuse_for_inference(network)(x), expected)
    torch.testing.assert_close(seen[-1], seen[0])


class Reading(nn.Module):
    """A forward pass that also reads a convolution's filters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.sum()


class Telling(nn.Module):
    """A forward pass that needs an attribute of the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm.num_features


def test_filters_that_the_network_reads_itself_stay() -> None:
    assert_fused_alike(settle(Reading()))


def broken(case: str) -> nn.Module:
    network = settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), DRConv2d(4, 4, 1), nn.BatchNorm2d(4)))
    if case == "bias":
        network[2].bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    elif case == "statistics":
        network[3].running_mean = torch.zeros(1, dtype=torch.float64)
    elif case == "attribute":
        return settle(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Telling()))
    else:
        network.add_module("undecided", Undecided())
    return network


@pytest.mark.parametrize("case", ["bias", "statistics", "attribute", "trace"])
def test_an_error_leaves_everything_as_it_was(case: str) -> None:
    network = broken(case)
    before, names = copy.deepcopy(network.state_dict()), [type(module) for module in network.modules()]
    with pytest.raises(ValueError, match=r"do not fit|cannot be traced"):
        fuse_for_inference(network)
    assert [type(module) for module in network.modules()] == names
    assert all(parameter.requires_grad for parameter in network.parameters())
    torch.testing.assert_close(network.state_dict(), before)


def test_a_parametrised_bias_is_passed_by() -> None:
    network = settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), DRConv2d(4, 4, 1), nn.BatchNorm2d(4)))
    parametrize.register_parametrization(network[2], "bias", nn.Tanh())
    assert_fused_alike(network)
    assert isinstance(network[1], nn.Identity)
    assert isinstance(network[3], nn.BatchNorm2d)


def test_layers_alone_and_half_precision() -> None:
    layer = DRConv2d(3, 4, 1).eval()
    assert fuse_for_inference(layer) is layer
    network = settle(nn.Sequential(DRConv2d(3, 4, 1), nn.BatchNorm2d(4))).bfloat16()
    fuse_for_inference(network)
    assert {parameter.dtype for parameter in network[0].parameters()} == {torch.bfloat16}
    assert network(torch.randn(2, 3, 5, 5).bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("how", ["in_place", "new", "loaded", "type", "copied", "pickled", "data_and_again"])
def test_packed_filters_follow_the_filters(how: str) -> None:
    network = nn.Sequential(DRConv2d(8, 8, 1, bias=False)).eval()
    x = torch.randn(1, 8, 4, 4)
    expected = fuse_for_inference(network)(x)
    other = copy.deepcopy(network) if how == "copied" else network
    if how == "in_place":
        other[0].weight.mul_(2)
    elif how == "new":
        for _ in range(3):
            other[0].weight = nn.Parameter(other[0].weight * 2 ** (1 / 3), requires_grad=False)
    elif how == "loaded":
        other.load_state_dict({name: (2 if name == "0.weight" else 1) * v for name, v in other.state_dict().items()})
    elif how == "type":
        other, x = other.double(), x.double()
        other[0].weight.mul_(2)
    elif how == "pickled":
        file = io.BytesIO()
        torch.save(other, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
        other[0].weight.data.mul_(2)
    elif how == "copied":
        other[0].weight.data.mul_(2)
    else:
        other[0].weight.data.mul_(2)
        fuse_for_inference(other)
    torch.testing.assert_close(other(x).float(), 2 * expected)
    assert "packed=True" in repr(other)


@torch.no_grad()
@pytest.mark.parametrize("how", ["data", "numpy", "shared"])
def test_nothing_is_kept_unasked(how: str) -> None:
    """Writes that PyTorch does not count: of single elements, by numpy, through memory that two layers share."""
    first, second = (DRConv2d(200, 150, 1, bias=False, guide="shared", scale=False).eval() for _ in range(2))
    second.weight.data = first.weight.data
    x, logits = torch.randn(1, 200, 4, 4), torch.zeros(1, 8, 4, 4)  # all in region 0
    before = first(x, logits)
    if how == "data":
        first.weight.data.view(-1)[1:3000].neg_()
    elif how == "numpy":
        first.weight.numpy().reshape(-1)[1:3000] *= -1
    else:
        second.weight.view(-1)[1:3000].neg_()
    after = first(x, logits)
    torch.testing.assert_close(after, nn.functional.conv2d(x, first.weight[0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before)
