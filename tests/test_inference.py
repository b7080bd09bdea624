"""Without gradients a layer takes a shorter way; whatever is done to it, the result and the errors stay the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from drconv.nn import DRConv2d, Guide, GuidedSequential
from drconv.nn.generators import PooledGate


def assert_alike(network: Callable[[Tensor], Tensor], x: Tensor) -> None:
    expected = network(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("experts", [1, 8])
def test_experts_as_many_as_regions_or_one(experts: int) -> None:
    conv = DRConv2d(4, 6, 1, regions=8, generator="experts", experts=experts).double()
    nn.init.normal_(conv.generator.weight)
    assert_alike(conv, torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_expanded_channels() -> None:
    conv = DRConv2d(4, 6, 1).double()
    nn.init.normal_(conv.generator.weight)
    assert_alike(conv, torch.rand(2, 1, 8, 8, dtype=torch.float64).expand(2, 4, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_another_type(dtype: torch.dtype) -> None:
    conv = DRConv2d(4, 6, 1, guide="shared").double()
    logits = torch.randn(2, 8, 5, 5).to(dtype)
    assert_alike(lambda x: conv(x, logits), torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_logits_and_norms_that_do_not_fit_are_refused() -> None:
    conv = DRConv2d(8, 8, 1, regions=4, scale=False, guide="shared")
    x = torch.randn(2, 8, 9, 9)
    blocks = [
        (lambda: conv(x, torch.randn(2, 8, 9, 9)), "guide is"),
        (lambda: conv(x, torch.randn(1, 4, 9, 9)), "guide is"),
        (lambda: GuidedSequential(nn.Sequential(conv), Guide(8, 8))(x), "guide is"),
        (lambda: GuidedSequential(nn.Sequential(conv, nn.BatchNorm2d(9)), Guide(8, 4)).eval()(x), "running_mean"),
    ]
    for call, message in blocks:
        with torch.no_grad(), pytest.raises((ValueError, RuntimeError), match=message):
            call()


@pytest.mark.parametrize("target", ["weight", "bias", "generator.weight", "guide.weight"])
@pytest.mark.parametrize("how", ["parametrised", "pruned"])
def test_parameters_that_are_made_before_the_call(how: str, target: str) -> None:
    conv = DRConv2d(5, 6, 1).double()
    nn.init.normal_(conv.generator.weight)
    owner, _, name = target.rpartition(".")
    module = conv.get_submodule(owner)
    if how == "pruned":
        prune.random_unstructured(module, name, amount=0.5)
    elif name == "bias":
        nn.utils.parametrize.register_parametrization(module, name, nn.Tanh())
    else:
        parametrizations.weight_norm(module, name)
    assert_alike(conv, torch.randn(3, 5, 4, 4, dtype=torch.float64))


def test_hooks_on_all_modules_of_a_block() -> None:
    inner = nn.Sequential(DRConv2d(5, 6, 1, guide="shared"), nn.BatchNorm2d(6), nn.ReLU())
    block = GuidedSequential(nn.Sequential(inner, DRConv2d(6, 5, 1, guide="shared")), Guide(5, 8)).double().eval()
    seen: list[type] = []
    for module in block.modules():
        module.register_forward_hook(lambda module, *_: seen.append(type(module)))
    assert_alike(block, torch.randn(3, 5, 4, 4, dtype=torch.float64))
    assert seen.count(DRConv2d) == 4
    assert seen.count(nn.ReLU) == 2


class _Doubled(DRConv2d):
    def forward(self, x: torch.Tensor, guide: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * super().forward(x, guide)


class _Turned(Guide):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


@pytest.mark.parametrize("head", [_Turned(4, 8), nn.Conv2d(4, 8, 1)], ids=["subclass", "convolution"])
def test_other_forwards_are_called(head: nn.Module) -> None:
    """Subclasses, patched layers and heads that are no guides: the same output with gradients and without."""
    patched = DRConv2d(6, 6, 1, guide="shared")
    patched.forward = lambda x, guide: 3 * DRConv2d.forward(patched, x, guide)
    layers = nn.Sequential(_Doubled(4, 6, 1, guide="shared"), nn.ReLU(), patched, nn.BatchNorm2d(6))
    block = GuidedSequential(layers, head).eval()
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        fast = block(x)
    torch.testing.assert_close(fast, block(x).detach())
    logits = head(x)
    y = DRConv2d.forward(layers[0], x, logits).mul(2).relu()
    y = layers[3](DRConv2d.forward(patched, y, logits).mul(3))
    torch.testing.assert_close(fast, y.detach())


class _Halved(PooledGate):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize("case", ["generator", "sequence", "group", "instance", "affine"])
def test_other_generators_and_norms_are_called(case: str) -> None:
    conv = DRConv2d(4, 6, 1, regions=8).eval()
    if case == "generator":
        conv.generator = _Halved(4, 8, (1, 1), 1.0)
    elif case == "sequence":
        conv.generator = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.Softplus())
    elif case == "group":
        conv.guide.norm = nn.GroupNorm(2, 8)
    elif case == "instance":
        conv.guide.norm = nn.InstanceNorm2d(8)
    else:
        conv.guide.norm = nn.BatchNorm2d(8).eval()
        nn.init.normal_(conv.guide.norm.weight)
        nn.init.normal_(conv.guide.norm.bias)
    assert_alike(conv, torch.randn(2, 4, 5, 5))


class _Remade(DRConv2d):
    """Another way to make filters, under the forward pass of its base."""

    def make_filters(self, gate: Tensor) -> Tensor:
        return super().make_filters(gate).tanh()

    def _mix(self, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._mix(gate, weight, bias).tanh()


def test_subclasses_that_change_a_part() -> None:
    conv = _Remade(4, 6, 1, generator="experts").double()
    nn.init.normal_(conv.generator.weight)
    assert_alike(conv, torch.randn(2, 4, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["forward", "pre"])
def test_hooks_on_all_modules_of_the_process(kind: str) -> None:
    block = GuidedSequential(
        nn.Sequential(DRConv2d(5, 6, 1, guide="shared"), nn.BatchNorm2d(6), nn.ReLU()), Guide(5, 8)
    )
    block = block.double().eval()
    seen: list[type] = []
    register = getattr(nn.modules.module, f"register_module_forward_{'pre_' if kind == 'pre' else ''}hook")
    handle = register(lambda module, *_: seen.append(type(module)))
    try:
        with torch.no_grad():
            block(torch.randn(2, 5, 4, 4, dtype=torch.float64))
    finally:
        handle.remove()
    assert {DRConv2d, Guide, PooledGate, nn.BatchNorm2d, nn.ReLU} <= set(seen)


@pytest.mark.parametrize("name", ["weight", "bias", "generator.weight", "generator.bias", "guide.weight"])
def test_parameters_that_became_tensors(name: str) -> None:
    """As data-parallel replicas and some libraries have them: attributes, not registered parameters."""
    conv = DRConv2d(5, 6, 1).double()
    nn.init.normal_(conv.generator.weight)
    owner, _, attribute = name.rpartition(".")
    module = conv.get_submodule(owner)
    value = torch.randn_like(getattr(module, attribute))
    delattr(module, attribute)
    setattr(module, attribute, value)
    assert_alike(conv, torch.randn(3, 5, 4, 4, dtype=torch.float64))


def test_a_replica_as_data_parallel_makes_it() -> None:
    conv = DRConv2d(5, 6, 1).double()
    replica = conv._replicate_for_data_parallel()
    for name, parameter in conv._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter * 2)
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    assert_alike(replica, x)
    torch.testing.assert_close(replica(x), 2 * conv(x))


def test_geometry_changed_afterwards() -> None:
    conv = DRConv2d(5, 6, 1, guide="shared").double()
    conv.stride = (2, 2)
    logits = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    assert_alike(lambda x: conv(x, logits), torch.randn(2, 5, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 5, 5), (5, 5), (1, 2, 5, 4, 4)])
def test_wrong_inputs_are_refused_in_one_way(shape: tuple[int, ...]) -> None:
    for conv in (DRConv2d(5, 6, 1), DRConv2d(5, 6, 1, guide="shared")):
        logits = () if conv.guide is not None else (torch.randn(2, 8, 5, 5),)
        raised = []
        for context in (torch.no_grad, torch.enable_grad):
            with context(), pytest.raises((ValueError, RuntimeError)) as error:
                conv(torch.randn(shape), *logits)
            raised.append(str(error.value))
        assert raised[0] == raised[1]


@pytest.mark.parametrize("form", [{}, {"generator": "experts"}, {"kernel_size": 3}])
def test_one_image_without_a_batch(form: dict) -> None:
    torch.manual_seed(0)
    conv = DRConv2d(5, 6, **{"kernel_size": 1, **form}).eval()
    block = GuidedSequential(nn.Sequential(DRConv2d(5, 6, 1, guide="shared"), nn.ReLU()), Guide(5, 8)).eval()
    x = torch.randn(5, 7, 6)
    for module in (conv, block, conv.guide):
        expected = module(x.unsqueeze(0))[0].detach()
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                torch.testing.assert_close(module(x).detach(), expected)
