"""DRConv2d behaves like nn.Conv2d and starts like one."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from drconv.nn import (
    PRINTED_FORM,
    CondConv2d,
    DeformableKernelConv2d,
    DRConv2d,
    Guide,
    GuidedSequential,
    LocalConv2d,
    fuse_for_inference,
)
from drconv.nn.diagnostics import set_progress

FORMS = {
    "grouped": {},
    "no_scale": {"scale": False},
    "bias": {"generator_bias": True},
    "hidden": {"hidden": 16},
    "experts": {"generator": "experts"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shape",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
        {"kernel_size": (3, 1), "padding": (1, 0), "dilation": (2, 1), "stride": (1, 2), "bias": False},
    ],
    ids=["pointwise", "groups", "uneven"],
)
def test_starts_from_a_convolution(form: str, shape: dict) -> None:
    """With a loaded filter the output is the convolution's, and everything still learns."""
    plain = nn.Conv2d(6, 4, **shape)
    conv = DRConv2d(6, 4, **shape, **FORMS[form])
    conv.load_filter(plain.weight, plain.bias)
    x = torch.randn(2, 6, 11, 9, requires_grad=True)
    y = conv(x)
    torch.testing.assert_close(y, plain(x), atol=1e-5, rtol=1e-5)
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())
    assert x.grad is not None


def _effective(conv: DRConv2d, x: torch.Tensor) -> torch.Tensor:
    """Filters of the first image at the start."""
    if conv.generator is None:
        return conv.weight
    return conv.make_filters(conv.generator(x))[0]


@pytest.mark.parametrize("form", ["grouped", "no_scale", "bias", "hidden"])
def test_start_is_alike_over_regions_and_smaller(form: str) -> None:
    torch.manual_seed(0)
    conv = DRConv2d(64, 96, 1, regions=8, init_noise=0.1, init_gain=None, **FORMS[form])
    filters = _effective(conv, torch.zeros(1, 64, 4, 4)).flatten(1)
    usual = nn.Conv2d(64, 96, 1).weight.std()
    assert filters.std().item() == pytest.approx(usual.item() / 8**0.5, rel=0.03)
    noise = filters.std(0).mean() / filters.std()
    expected = 0.1 if form != "hidden" else 0.1 / 2**0.5  # two noisy units are averaged
    assert noise.item() == pytest.approx(expected, rel=0.1)


def test_gain_noise_and_spread_of_the_start() -> None:
    torch.manual_seed(0)
    same = DRConv2d(64, 96, 1, init_noise=0.0, init_gain=1.0)
    filters = _effective(same, torch.zeros(1, 64, 4, 4))
    assert all(torch.equal(filters[0], other) for other in filters)
    assert filters.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.03)
    same.reset_parameters(std=1.0)
    assert _effective(same, torch.zeros(1, 64, 4, 4)).std().item() == pytest.approx(1.0, rel=0.03)


def test_experts_start_as_released() -> None:
    torch.manual_seed(0)
    conv = DRConv2d(64, 96, 3, generator="experts", experts=3, init_gain=None)
    bound = (6 / (64 * 9)) ** 0.5
    assert conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert conv.generator.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_meta_device_and_double_precision_under_autocast(form: str) -> None:
    conv = DRConv2d(4, 6, 3, padding=1, **FORMS[form], device="meta")
    assert conv(torch.empty(2, 4, 5, 5, device="meta")).shape == (2, 6, 5, 5)
    conv = DRConv2d(4, 6, 1, **FORMS[form]).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(x), conv(x.clone()))
        assert conv(x).dtype == torch.float64


def test_shared_guide_is_needed() -> None:
    conv = DRConv2d(4, 6, 1, guide="shared")
    x = torch.randn(2, 4, 5, 5)
    assert conv(x, torch.randn(2, 8, 3, 3)).shape == (2, 6, 5, 5)
    with pytest.raises(RuntimeError, match="GuidedSequential"):
        conv(x)


@pytest.mark.parametrize("form", FORMS)
def test_copies_and_files(form: str) -> None:
    conv = DRConv2d(4, 6, 3, padding=1, **FORMS[form])
    sequence = GuidedSequential(nn.Sequential(conv), Guide(4, 8, norm="batch"))
    x = torch.randn(2, 4, 6, 5)
    sequence(x).sum().backward()
    expected = sequence.eval()(x)
    assert torch.equal(copy.deepcopy(sequence)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(sequence))(x), expected)
    file = io.BytesIO()
    torch.save(sequence.state_dict(), file)
    file.seek(0)
    other = GuidedSequential(nn.Sequential(DRConv2d(4, 6, 3, padding=1, **FORMS[form])), Guide(4, 8, norm="batch"))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(x), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("regions", [1, 2, 32])
def test_region_counts_and_empty_batch(form: str, regions: int) -> None:
    conv = DRConv2d(4, 6, 3, padding=1, regions=regions, **(FORMS[form] | {"hidden": None}))
    for batch in (0, 1):
        y = conv(torch.randn(batch, 4, 7, 5))
        assert y.shape == (batch, 6, 7, 5)
        y.sum().backward()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(form: str, dtype: torch.dtype) -> None:
    conv = DRConv2d(4, 6, 1, dtype=dtype, **FORMS[form])
    assert {parameter.dtype for parameter in conv.parameters()} == {dtype}
    x = torch.randn(2, 4, 5, 5, dtype=dtype, requires_grad=True)
    y = conv(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("form", ["grouped", "bias", "experts"])
def test_autocast_keeps_the_memory_format(form: str) -> None:
    conv = DRConv2d(4, 6, 1, **FORMS[form])
    x = torch.randn(2, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


def test_filter_sharing_follows_the_progress() -> None:
    """A quarter on the way from 0.9 to 0.1 the share is 0.7."""
    falling, constant = (
        DRConv2d(4, 6, 1, **options)
        for options in ({"filter_sharing": 0.9, "filter_sharing_end": 0.1}, {"filter_sharing": 0.7})
    )
    constant.load_state_dict(falling.state_dict())
    set_progress(torch.nn.Sequential(falling), 0.25)
    x = torch.randn(2, 4, 5, 5)
    for conv in (falling, constant):
        conv(x).square().sum().backward()
    torch.testing.assert_close(falling.weight.grad, constant.weight.grad)


@pytest.mark.parametrize("form", ["grouped", "experts"])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_graph_break(form: str, training: bool) -> None:
    conv = DRConv2d(4, 6, 1, guide_norm="batch", guide_gradient=0.5, **FORMS[form]).train(training)
    x = torch.randn(2, 4, 5, 5)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(conv), fullgraph=True, backend="aot_eager")
    expected, actual = conv(x), compiled(x)
    torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    for a, e in zip(compiled.parameters(), conv.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "mixed"}, "grouped, experts"),
        ({"guide": "block"}, '"own" or "shared"'),
        ({"guide_norm": "layer"}, "none, batch, scale"),
        ({"hidden": 12}, "multiple of regions=8"),
        ({"groups": 3}, "groups=3"),
        ({"generator": "experts", "generator_bias": True}, "generator_bias"),
        ({"generator": "experts", "scale": False}, "scale=False"),
    ],
)
def test_options_that_contradict(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DRConv2d(4, 6, 1, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((name, value) for name in ("in_channels", "out_channels", "kernel_size") for value in (0, -1, 2.5, "4")),
        *((name, value) for name in ("regions", "experts", "guide_stride", "stride", "dilation") for value in (0, 2.5)),
        ("regions", True),
        ("hidden", 0),
        ("groups", 0),
        ("padding", -1),
        ("padding", "same"),
        ("filter_sharing", 2),
        ("filter_sharing", -0.1),
        *((name, value) for name in ("generator_gradient", "guide_gradient") for value in (-1.0, math.nan, "1")),
        *((name, value) for name in ("feature_gradient", "init_noise") for value in (-1.0, math.inf)),
        ("init_gain", -1.0),
    ],
)
def test_options_out_of_range_are_named(option: str, value: object) -> None:
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": 1, option: value}
    with pytest.raises(ValueError, match=f"^{option}="):
        DRConv2d(**options)


def test_options_of_the_rivals_are_named_too() -> None:
    rivals = [(CondConv2d, {}), (LocalConv2d, {"input_size": 8}), (DeformableKernelConv2d, {}), (Guide, {})]
    for kind, given in rivals:
        second = {"regions": 4} if kind is Guide else {"out_channels": 4}
        for option, value in (("kernel_size", 0), ("in_channels", 0), ("stride", 0), ("dilation", 1.5)):
            with pytest.raises(ValueError, match=f"^{option}="):
                kind(**({"in_channels": 4, "kernel_size": 1} | second | given | {option: value}))


def test_numbers_of_other_libraries_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    conv = DRConv2d(numpy.int64(4), numpy.int32(6), 1, regions=numpy.int64(3))
    assert conv(torch.randn(1, 4, 3, 3)).shape == (1, 6, 3, 3)


def test_repr_shows_the_form_and_what_fusion_did() -> None:
    text = repr(DRConv2d(4, 6, 1))
    assert "filter_sharing=0.9" in text
    assert "generator_gradient=0.1" in text
    text = repr(DRConv2d(4, 6, 1, **PRINTED_FORM))
    assert "filter_sharing=0.0" in text
    assert "generator_gradient=1.0" in text
    text = repr(DRConv2d(4, 6, 1, generator="experts", bias=False))
    assert "experts=8" in text
    assert "bias=False" in text
    assert "hidden=16, generator_bias=True" in repr(DRConv2d(4, 6, 1, hidden=16, generator_bias=True))
    assert "scale=False" in repr(DRConv2d(4, 6, 1, scale=False))
    network = nn.Sequential(DRConv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU6()).eval()
    assert "fused=ReLU6, packed=True" in repr(fuse_for_inference(network))
