"""Anything can be handed to the C++ operators: they answer rightly or say what does not fit, and read nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drconv.nn import DRConv2d, region_conv2d
from drconv.nn.kernels import cpu

X, WEIGHT = torch.randn(2, 4, 5, 3), torch.randn(3, 6, 4, 1, 1)
LOGITS, GUIDE = torch.randn(2, 3, 5, 3), torch.randn(3, 4, 1, 1)
GATE, OFFSETS = torch.randn(3, 4), torch.randn(3)
VECTOR = torch.rand(6)


@pytest.fixture(autouse=True)
def _built() -> None:
    if not cpu.is_available():
        pytest.skip("no compiler")
    return


def layer(**change: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "x": X,
        "weight": WEIGHT,
        "guide": GUIDE,
        "has_logits": False,
        "guide_norm": [],
        "guide_eps": 1e-5,
        "gate_weight": None,
        "gate_bias": None,
        "peak": 1.0,
        "bias": None,
        "norm": [],
        "eps": 1e-5,
        "limit": None,
        "packed": None,
    }
    return torch.ops.drconv.cpu_drconv.default(*(arguments | change).values())[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, "x is"),
        ({"x": X.half()}, "Half"),
        ({"x": X[:, :3]}, "weight is"),
        ({"x": X[:, :0], "weight": WEIGHT[:, :, :0], "guide": GUIDE[:, :0]}, "at least one channel"),
        ({"weight": WEIGHT.double()}, "Double"),
        ({"weight": WEIGHT[0]}, "weight is"),
        ({"weight": WEIGHT[:0]}, "at least one region"),
        ({"weight": WEIGHT[:2]}, "filters for 3 regions"),
        ({"guide": GUIDE[:0]}, "at least one region"),
        ({"guide": GUIDE.expand(3, 4, 3, 3)}, "guide is"),
        ({"guide": LOGITS[:1], "has_logits": True}, "guide is"),
        ({"guide": LOGITS[:, :, :0], "has_logits": True}, "at least one position"),
        ({"guide_norm": [OFFSETS]}, "guide_norm holds 1"),
        ({"guide_norm": [OFFSETS, OFFSETS[:2]]}, "guide_norm is"),
        ({"gate_weight": GATE}, "weight and bias, or neither"),
        ({"gate_weight": GATE[:, :3], "gate_bias": OFFSETS}, "gate_weight is"),
        ({"gate_weight": torch.randn(5, 4), "gate_bias": torch.randn(5)}, "gate_weight is"),
        ({"gate_weight": GATE, "gate_bias": OFFSETS[:2]}, "gate_bias is"),
        ({"bias": torch.zeros(3)}, "bias is"),
        ({"bias": torch.zeros(1).expand(1)}, "bias is"),
        ({"norm": [VECTOR, VECTOR, VECTOR]}, "norm holds 3"),
        ({"norm": [VECTOR, VECTOR[:5]]}, "norm is"),
        ({"norm": [VECTOR, VECTOR.double()]}, "norm is"),
    ],
)
def test_layers_say_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, NotImplementedError, RuntimeError), match=message):
        layer(**change)


@pytest.mark.parametrize(
    ("index", "other", "message"),
    [
        (0, X[0], "x is"),
        (0, X.long(), "Long"),
        (1, torch.randn(3, 3, 6, 4, 1, 1), "filters for 3 images"),
        (1, torch.randn(1, 3, 6, 4, 3, 3), "weight is"),
        (1, torch.randn(1, 3, 6, 5, 1, 1), "weight is"),
        (1, torch.randn(1, 0, 6, 4, 1, 1), "at least one region"),
        (2, torch.randn(2, 3, 5, 4), "logits is"),
        (2, torch.randn(2, 4, 5, 3), "logits is"),
        (2, torch.randn(2, 3, 5, 3).double(), "Double"),
        (3, torch.rand(2, 4), "scale is"),
        (3, torch.rand(3), "scale is"),
    ],
)
def test_products_say_what_does_not_fit(index: int, other: Tensor, message: str) -> None:
    arguments = [X, WEIGHT.unsqueeze(0), LOGITS, torch.rand(2, 3)]
    arguments[index] = other
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        torch.ops.drconv.cpu_region_conv2d(*arguments)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        torch.ops.drconv.cpu_region_conv2d_backward(torch.randn(2, 6, 5, 3), *arguments, True, True, True, True)


def test_gradients_of_another_size_are_refused() -> None:
    arguments = [X, WEIGHT.unsqueeze(0), LOGITS, None]
    with pytest.raises(ValueError, match="the gradient is"):
        torch.ops.drconv.cpu_region_conv2d_backward(torch.randn(2, 5, 5, 3), *arguments, True, True, True, True)


def spread(tensor: Tensor, how: str) -> Tensor:
    """The same numbers, every other one of a larger tensor, or one number seen many times."""
    if how == "expanded":
        return tensor.flatten()[:1].expand(tensor.shape)
    wide = torch.full((*tensor.shape, 3), torch.nan, dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


@pytest.mark.parametrize("how", ["strided", "expanded"])
def test_any_stride_is_read_rightly(how: str) -> None:
    vectors = {"bias": spread(VECTOR, how), "norm": [spread(VECTOR + i, how) for i in range(4)]}
    guide_norm = [spread(OFFSETS, how), spread(OFFSETS.abs() + 1, how)]
    gate = {"gate_weight": spread(GATE, how), "gate_bias": spread(OFFSETS, how)}
    given = {**vectors, **gate, "guide_norm": guide_norm, "weight": spread(WEIGHT, how), "guide": spread(GUIDE, how)}
    dense = {k: [t.contiguous() for t in v] if isinstance(v, list) else v.contiguous() for k, v in given.items()}
    torch.testing.assert_close(layer(**given, x=spread(X, how)), layer(**dense, x=spread(X, how).contiguous()))


def test_wrong_parameters_of_a_layer_are_refused_in_both_modes() -> None:
    def replaced(name: str, value: Tensor) -> DRConv2d:
        conv = DRConv2d(4, 64, 1, regions=3, guide_norm="batch")
        owner, _, attribute = name.rpartition(".")
        module = conv.get_submodule(owner)
        if attribute in module._buffers:
            module._buffers[attribute] = value
        else:
            setattr(module, attribute, nn.Parameter(value))
        return conv.eval()

    cases = {
        "bias": torch.zeros(3),
        "generator.weight": torch.zeros(3, 5),
        "generator.bias": torch.zeros(2),
        "guide.norm.running_mean": torch.zeros(2),
        "guide.weight": torch.zeros(3, 5, 1, 1),
    }
    for name, value in cases.items():
        for context in (torch.no_grad, torch.enable_grad):
            with context(), pytest.raises((RuntimeError, ValueError)):
                replaced(name, value)(X)


def test_no_channels_no_outputs_no_images_no_positions() -> None:
    for shape, outputs in (((2, 0, 5, 3), 6), ((2, 4, 5, 3), 0), ((0, 4, 5, 3), 6), ((2, 4, 0, 3), 6)):
        tensors = [
            torch.randn(shape),
            torch.randn(1, 3, outputs, shape[1], 1, 1),
            torch.randn(shape[0], 3, *shape[2:]),
            torch.rand(shape[0], 3),
        ]
        x, weight, logits, scale = (t.requires_grad_() for t in tensors)
        y = torch.ops.drconv.cpu_region_conv2d(x, weight, logits, scale)
        assert y.shape == (shape[0], outputs, *shape[2:])
        y.sum().backward()
        assert all(not t.grad.any() for t in tensors)
    with pytest.raises(ValueError, match="at least one region"):
        region_conv2d(X, torch.randn(1, 0, 6, 4, 1, 1), torch.randn(2, 0, 5, 3))


def test_packed_filters_are_used_only_where_they_fit() -> None:
    expected, packed = layer(), torch.ops.drconv.cpu_pack(WEIGHT)
    torch.testing.assert_close(layer(packed=packed), expected)
    torch.testing.assert_close(layer(packed=2 * packed), 2 * expected)  # they are what is read
    others = (packed.double(), packed[:2], packed.mT, packed.flatten(), torch.zeros(0), packed[..., :-1])
    for other in others:
        torch.testing.assert_close(layer(packed=other), expected)
    with pytest.raises(ValueError, match="weight is"):
        torch.ops.drconv.cpu_pack(WEIGHT[0])
    with pytest.raises(ValueError, match="nothing to pack"):
        torch.ops.drconv.cpu_pack(WEIGHT[:0])
