"""fuse_for_inference: the same outputs with fewer modules."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

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
