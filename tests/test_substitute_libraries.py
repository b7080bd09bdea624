"""Library networks with DRConv under torch.compile and DistributedDataParallel."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drconv import substitute
from drconv.nn import is_pointwise

NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
}
LAYERS = {"resnet18": "layer[34].*.conv2"}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    substitute(network, "drconv", layers=LAYERS.get(name, is_pointwise), regions=4, input_size=64)
    return network.eval()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_compiles_without_a_graph_break(name: str) -> None:
    network, x = build(name), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        found = torch.compile(network, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_gradients_under_ddp_are_those_without(name: str, process_group: None) -> None:
    x = torch.randn(2, 3, 64, 64)
    plain, wrapped = build(name), build(name)
    plain(x).square().sum().backward()
    DistributedDataParallel(wrapped)(x).square().sum().backward()
    for parameter, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
