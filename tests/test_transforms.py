"""Forward-mode derivatives, vmap, torch.func: right on ``reference``, which is chosen for them, refused elsewhere."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from drconv.nn import CondConv2d, DRConv2d, Guide, GuidedSequential, kernels, region_conv2d
from drconv.nn.kernels import cpu
from tests.oracle import random_problem, region_conv2d_loop

FORMS = {
    "default": {},
    "experts": {"generator": "experts"},
    "bias": {"generator_bias": True},
    "damped": {"guide_gradient": 0.5, "feature_gradient": 0.25, "guide_norm": "none"},
    "window": {"kernel_size": 3, "padding": 1, "stride": 2},
}


def layer(form: str) -> DRConv2d:
    torch.manual_seed(0)
    conv = DRConv2d(4, 6, **{"kernel_size": 1, "regions": 3, **FORMS[form]}).double().eval()
    if conv.generator is not None:
        nn.init.normal_(conv.generator.weight)
    return conv


def test_tangents_are_the_transpose_of_the_equations() -> None:
    """<u, J v> = <J^T u, v>, with J^T u from the loop over positions (Eq. 7 and 8 for the logits)."""
    p = random_problem(size=(4, 3))
    output = region_conv2d_loop(p, torch.zeros(2, 6, 4, 3)).output
    u = torch.randn_like(output)
    transposed = region_conv2d_loop(p, u)
    tangents = tuple(torch.randn_like(t) for t in p.tensors())

    def function(x: Tensor, weight: Tensor, guide: Tensor, scale: Tensor) -> Tensor:
        return region_conv2d(x, weight, guide, scale=scale)

    y, tangent = jvp(function, tuple(p.tensors()), tangents)
    torch.testing.assert_close(y, output)
    expected = sum((t * g).sum() for t, g in zip(tangents, transposed.tensors()[1:], strict=True))
    torch.testing.assert_close((u * tangent).sum(), expected)
    jacobian = jacfwd(function)(*p.tensors())
    torch.testing.assert_close(
        (jacobian * tangents[0]).sum((-4, -3, -2, -1)),
        jvp(lambda x: function(x, *p.tensors()[1:]), (p.x,), (tangents[0],))[1],
    )
    torch.testing.assert_close(jacrev(function)(*p.tensors()), jacobian)


@pytest.mark.parametrize("form", FORMS)
def test_layer_in_forward_mode_agrees_with_backward(form: str) -> None:
    """With dual tensors too, where gradients are switched off and a layer takes its shortest way."""
    conv = layer(form)
    x, v = torch.randn(2, 4, 5, 4, dtype=torch.float64), torch.randn(2, 4, 5, 4, dtype=torch.float64)
    y = conv(x.requires_grad_())
    u = torch.randn_like(y)
    (transposed,) = torch.autograd.grad(y, x, u)
    _, tangent = jvp(conv, (x.detach(),), (v,))
    torch.testing.assert_close((u * tangent).sum(), (transposed * v).sum())
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.unpack_dual(conv(forward_ad.make_dual(x.detach(), v)))
        torch.testing.assert_close(dual.primal, y.detach())
        torch.testing.assert_close(dual.tangent, tangent)
    torch.testing.assert_close(vjp(conv, x.detach())[1](u)[0], transposed)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_each_sample(form: str) -> None:
    conv = layer(form)
    parameters = dict(conv.named_parameters())
    x, u = (
        torch.randn(3, 4, 5, 4, dtype=torch.float64),
        torch.randn(3, *conv(torch.zeros(1, 4, 5, 4).double()).shape[1:]),
    )

    def loss(parameters: dict[str, Tensor], x: Tensor, u: Tensor) -> Tensor:
        return (functional_call(conv, parameters, (x,)) * u).sum()  # one image without a batch

    actual = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, u)
    for i in range(3):
        conv.zero_grad()
        (conv(x[i : i + 1]) * u[i]).sum().backward()
        for name, parameter in conv.named_parameters():
            torch.testing.assert_close(actual[name][i], parameter.grad)


def test_an_ensemble_runs_as_one() -> None:
    blocks = [
        GuidedSequential(nn.Sequential(DRConv2d(4, 6, 1, guide="shared"), nn.ReLU()), Guide(4, 8, norm="none")).double()
        for _ in range(3)
    ]
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    state = stack_module_state(blocks)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            actual = vmap(lambda p, b: functional_call(blocks[0], (p, b), (x,)))(*state)
            torch.testing.assert_close(actual, torch.stack([block(x) for block in blocks]))


def test_condconv_too() -> None:
    conv = CondConv2d(4, 6, 3, padding=1).double()
    x = torch.randn(3, 4, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(vmap(conv)(x), conv(x))


@pytest.mark.parametrize("kernel", ["torch", "cpu"])
def test_other_kernels_refuse(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = random_problem(dtype=torch.float32)

    def run(x: Tensor, guide: Tensor = p.logits) -> Tensor:
        return region_conv2d(x, p.weight, guide, kernel=kernel)

    calls = (
        lambda: jvp(run, (p.x,), (p.x,)),
        lambda: vmap(run)(p.x, p.logits),
        lambda: grad(lambda x: run(x).sum())(p.x),
    )
    for call in calls:
        with pytest.raises(ValueError, match='use kernel="reference"'):
            call()
    monkeypatch.setenv(kernels.VARIABLE, kernel)
    with pytest.raises(ValueError, match='use kernel="reference"'):
        jvp(lambda x: region_conv2d(x, p.weight, p.logits), (p.x,), (p.x,))


def test_operators_of_saved_programs_refuse_tangents() -> None:
    p = random_problem(dtype=torch.float32)
    with torch.no_grad(), forward_ad.dual_level():
        x = forward_ad.make_dual(p.x, p.x)
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.ops.drconv.region_conv2d_torch(x, p.weight, p.logits, p.scale, [1, 1, 0, 0, 1, 1, 1])
        if cpu.is_available():
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                torch.ops.drconv.cpu_region_conv2d(x, p.weight, p.logits, p.scale)
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                torch.ops.drconv.cpu_drconv(
                    x, p.weight[0], p.logits, True, [], 0.0, None, None, 1.0, None, [], 0.0, None
                )


def test_second_derivatives_of_the_reference() -> None:
    """Of x and filters; those of the logits are derivatives of Eq. 8, not of the output, which jumps."""
    p = random_problem(size=(2, 2), batch=1, scale="none")
    leaves = (p.x.requires_grad_(), p.weight.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, w: region_conv2d(x, w, p.logits, kernel="reference"), leaves)
