"""What the C++ kernel adds to the shared tests: layouts, sizes of its tiles, the whole-layer call, caches, compile."""

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drconv.nn import DRConv2d, Guide, GuidedSequential
from drconv.nn.kernels import cpu, reference
from drconv.nn.kernels.geometry import Geometry

GEOMETRY = Geometry((1, 1), (0, 0), (1, 1), 1)


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    if not cpu.is_available():
        pytest.skip("no compiler")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def gradients(kernel: object, tensors: list[Tensor | None], grad: Tensor) -> list[Tensor]:
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
    output = kernel.region_conv2d(*leaves, GEOMETRY)  # type: ignore[attr-defined]
    output.backward(grad)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 70),
    outputs=st.integers(1, 70),
    regions=st.integers(1, 12),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    per_image=st.booleans(),
    has_scale=st.booleans(),
    is_last=st.booleans(),
    threads=st.integers(1, 3),
)
def test_all_shapes_agree_with_the_reference(
    batch: int,
    channels: int,
    outputs: int,
    regions: int,
    size: tuple[int, int],
    per_image: bool,
    has_scale: bool,
    is_last: bool,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(batch + channels + outputs)
    layout = torch.channels_last if is_last else torch.contiguous_format
    x = torch.randn(batch, channels, *size, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn(batch if per_image else 1, regions, outputs, channels, 1, 1, dtype=torch.float64)
    logits = torch.randn(batch, regions, *size, dtype=torch.float64).to(memory_format=layout)
    scale = torch.rand(batch, regions, dtype=torch.float64) if has_scale else None
    grad = torch.randn(batch, outputs, *size, dtype=torch.float64)
    actual = gradients(cpu, [x, weight, logits, scale], grad)
    expected = gradients(reference, [x, weight, logits, scale], grad)
    assert actual[0].is_contiguous(memory_format=layout)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
    frozen = [t if t is None else t.clone().requires_grad_() for t in (x, weight, scale)]
    cpu.region_conv2d(frozen[0], frozen[1], logits, frozen[2], GEOMETRY).backward(grad)
    for leaf, e in zip([t for t in frozen if t is not None], expected[1:3] + expected[4:], strict=True):
        torch.testing.assert_close(leaf.grad, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("channels", "outputs", "side"), [(24, 24, 28), (58, 58, 14), (232, 232, 7), (320, 200, 7)])
def test_real_shapes_in_single_precision(channels: int, outputs: int, side: int) -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(2, channels, side, side),
        torch.randn(1, 8, outputs, channels, 1, 1) / channels**0.5,
        torch.randn(2, 8, side, side),
        torch.rand(2, 8),
    ]
    grad = torch.randn(2, outputs, side, side)
    actual = gradients(cpu, tensors, grad)
    expected = gradients(reference, [t.double() for t in tensors], grad.double())
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-5 * e.abs().max()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "channels_last_slice"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("channels", "size"), [(6, (5, 7)), (70, (2, 3))])  # packed, and read as stored
def test_layer_without_gradients_agrees_with_the_layer(
    layout: str, has_bias: bool, batch: int, channels: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv = DRConv2d(channels, 10, 1, bias=has_bias, regions=4).double()
    torch.nn.init.normal_(conv.generator.weight)
    x = torch.randn(batch, 2 * channels, *size, dtype=torch.float64)
    if "last" in layout:
        x = x.to(memory_format=torch.channels_last)
    x = x[:, 1::2] if "slice" in layout else x[:, :channels].clone()
    expected = conv(x)
    with torch.no_grad():
        actual = conv(x)
        conv.relu_limit = torch.inf
        rectified = conv(x)
    torch.testing.assert_close(actual, expected.detach())
    torch.testing.assert_close(rectified, expected.detach().relu())


@pytest.mark.parametrize("generator", ["grouped", "experts"])
@pytest.mark.parametrize("guide_norm", ["none", "batch"])
@pytest.mark.parametrize("order", [("norm", "relu"), ("relu", "norm"), ("relu6", "relu"), ("norm", "norm")])
@pytest.mark.parametrize(("channels", "shape"), [(6, (3, 9, 11)), (40, (1, 2, 3))])  # packed, and read as stored
def test_block_without_gradients_agrees_with_its_modules(
    generator: str, guide_norm: str, order: tuple[str, str], channels: int, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    kinds = {"norm": lambda: torch.nn.BatchNorm2d(20), "relu": torch.nn.ReLU, "relu6": torch.nn.ReLU6}
    layers = [DRConv2d(channels, 20, 1, guide="shared", regions=9, generator=generator, init_gain=9.0)]
    layers += [kinds[name]() for name in order] + [DRConv2d(20, 7, 1, guide="shared", regions=9)]
    block = GuidedSequential(torch.nn.Sequential(*layers), Guide(channels, 9, norm=guide_norm)).double()
    x = torch.randn(shape[0], channels, *shape[1:], dtype=torch.float64)
    block(x)
    block.eval()
    expected = block(x)
    seen = []
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected.detach())
        block[1].register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(block(x), expected.detach())
    assert seen


def test_guide_norm_in_training_mode_uses_the_batch() -> None:
    """Without gradients too, as when batch-norm statistics are estimated again."""
    conv = DRConv2d(6, 6, 1, regions=5, guide_norm="batch").double()
    x = 3 + torch.randn(4, 6, 7, 7, dtype=torch.float64)
    expected, mean = conv(x).detach(), conv.guide.norm.running_mean.clone()
    conv.guide.norm.reset_running_stats()
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv.guide.norm.running_mean, mean)


def test_guide_of_another_size_is_resized() -> None:
    conv = DRConv2d(4, 4, 1, guide="shared", regions=3)
    x, logits = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 6, 6)
    expected = conv(x, logits)
    with torch.no_grad():
        torch.testing.assert_close(conv(x, logits), expected.detach())


@pytest.mark.parametrize("through_data", [False, True])
def test_packed_filters_follow_the_weight(through_data: bool) -> None:
    conv = DRConv2d(8, 8, 1, bias=False)
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        before = conv(x)
        (conv.weight.data if through_data else conv.weight).mul_(2)
        torch.testing.assert_close(conv(x), 2 * before)


def test_gradients_of_the_weight_are_those_of_differences() -> None:
    """gradcheck writes single elements through ``.data``: filters packed for an earlier call must not be taken."""
    x, logits, scale = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4), torch.rand(2, 4)
    weight = torch.randn(1, 4, 5, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    fixed = (x.double(), logits.double(), scale.double())
    assert torch.autograd.gradcheck(
        lambda w: cpu.region_conv2d(fixed[0], w, fixed[1], fixed[2], GEOMETRY), weight, fast_mode=False
    )


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    y = cpu.region_conv2d(x, torch.randn(1, 2, 5, 3, 1, 1), torch.randn(1, 2, 4, 4), None, GEOMETRY)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_ties_go_to_the_lowest_region() -> None:
    weight = torch.arange(3.0).view(1, 3, 1, 1, 1, 1)
    logits = torch.tensor([[0.0, 1, 1], [2, 2, 2]]).T.reshape(1, 3, 1, 2)
    y = cpu.region_conv2d(torch.ones(1, 1, 1, 2), weight, logits, None, GEOMETRY)
    assert y.flatten().tolist() == [1.0, 0.0]


def test_what_is_not_supported_is_declined() -> None:
    x, logits = torch.randn(1, 4, 3, 3), torch.randn(1, 2, 3, 3)
    assert not cpu.supports(x, torch.randn(1, 2, 4, 4, 3, 3), logits, None, Geometry((1, 1), (1, 1), (1, 1), 1))
    assert not cpu.supports(x, torch.randn(1, 2, 4, 2, 1, 1), logits, None, GEOMETRY._replace(groups=2))
    assert not cpu.supports(x.bfloat16(), torch.randn(1, 2, 4, 4, 1, 1).bfloat16(), logits, None, GEOMETRY)


def test_compile_has_no_graph_break() -> None:
    branch = torch.nn.Sequential(DRConv2d(4, 4, 1, guide="shared", regions=2))
    network = GuidedSequential(branch, Guide(4, 2))
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = network(x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    torch._dynamo.reset()
    actual = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    (grad,) = torch.autograd.grad(actual.sum(), x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_without_a_compiler_one_line_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING, logger=cpu.__name__):
        assert not cpu._load.__wrapped__()
    (record,) = [record for record in caplog.records if record.name == cpu.__name__]
    assert "torch kernel is used" in record.getMessage()
