"""region_conv2d, the public function: what it adds to the kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn import kernels, region_conv2d
from tests.oracle import random_problem, region_conv2d_loop


def _call(x: Tensor, weight: Tensor, guide: Tensor, **options: object) -> Tensor:
    return region_conv2d(x, weight, guide, **options)


@pytest.mark.parametrize("size", [(3, 2), (12, 9), (6, 14), (1, 1)])
def test_guide_is_resized_to_the_output(size: tuple[int, int]) -> None:
    p = random_problem(kernel=3, size=(13, 15), stride=2, padding=1, dtype=torch.float32)
    guide = torch.randn(2, 3, *size)
    output = _call(p.x, p.weight, guide, scale=p.scale, stride=2, padding=1)
    rows = torch.arange(7) * size[0] // 7
    columns = torch.arange(8) * size[1] // 8
    p.logits = guide[:, :, rows][:, :, :, columns]
    expected = region_conv2d_loop(p, torch.zeros_like(output)).output
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


def test_one_region_is_a_convolution() -> None:
    x, weight = torch.randn(2, 6, 9, 8), torch.randn(4, 3, 3, 2)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    output = _call(x, weight[None, None], torch.zeros(2, 1, 1, 1), **options)
    torch.testing.assert_close(output, F.conv2d(x, weight, None, **options), atol=1e-5, rtol=1e-5)


def test_gradcheck_where_the_choice_is_fixed() -> None:
    p = random_problem(size=(3, 3), kernel=2, scale="tap")
    tensors = [t.requires_grad_() for t in (p.x, p.weight, p.scale)]
    assert torch.autograd.gradcheck(lambda x, w, s: _call(x, w, p.logits, scale=s, kernel="torch"), tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    p = random_problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        output = _call(p.x, p.weight, p.logits.to(dtype), scale=p.scale)
    assert output.dtype == dtype
    p.logits = p.logits.to(dtype).float()
    expected = region_conv2d_loop(p, torch.zeros_like(output)).output
    torch.testing.assert_close(output.double(), expected, atol=3e-2, rtol=3e-2)


def test_autocast_leaves_float64_alone() -> None:
    p = random_problem()
    with torch.autocast("cpu", torch.bfloat16):
        assert _call(p.x, p.weight, p.logits, scale=p.scale).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 4)}, "2, 6 and 4 dimensions"),
        ({"x": torch.zeros(2, 5, 5, 4)}, "5 channels"),
        ({"weight": torch.zeros(3, 3, 6, 4, 1, 1)}, "filters for 3 images"),
        ({"guide": torch.zeros(2, 4, 5, 4)}, r"\(2, 3, H', W'\)"),
        ({"scale": torch.zeros(2, 2)}, r"\(2, 3\)"),
        ({"x": torch.zeros(2, 4, 5, 4, dtype=torch.float64)}, "float64"),
        ({"groups": 4}, "groups=4"),
        ({"weight": torch.zeros(1, 3, 6, 4, 7, 7)}, "does not fit"),
        ({"kernel": "fast"}, "reference, torch, cpu, triton"),
    ],
)
def test_errors_say_what_is_wrong(change: dict, message: str) -> None:
    p = random_problem(dtype=torch.float32)
    arguments = {"x": p.x, "weight": p.weight, "guide": p.logits, "scale": p.scale} | change
    with pytest.raises(ValueError, match=message):
        region_conv2d(**arguments)


def test_kernel_is_chosen_by_argument_then_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    p = random_problem(dtype=torch.float32)
    arguments = (*p.tensors(), p.geometry())
    reference, torch_kernel = kernels.load("reference"), kernels.load("torch")
    monkeypatch.setenv("DRCONV_KERNEL", "reference")
    assert kernels.select(*arguments) is reference.region_conv2d
    assert kernels.select(*arguments, kernel="torch") is torch_kernel.region_conv2d
    monkeypatch.delenv("DRCONV_KERNEL")
    monkeypatch.setitem(kernels._MODULES, "cpu", None)
    assert kernels.select(*arguments) is torch_kernel.region_conv2d
    with pytest.raises(ValueError, match="kernel='cpu' cannot run on cpu"):
        kernels.select(*arguments, kernel="cpu")


@pytest.mark.parametrize("kernel", ["reference", "torch", None])
@pytest.mark.parametrize("per_sample", [False, True])
def test_compiles_without_graph_break(kernel: str | None, per_sample: bool) -> None:
    p = random_problem(kernel=3, padding=1, size=(6, 6), per_sample=per_sample, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in p.tensors()]

    def function(x: Tensor, weight: Tensor, guide: Tensor, scale: Tensor) -> Tensor:
        return region_conv2d(x, weight, guide, scale=scale, padding=1, kernel=kernel)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    outputs = [f(*leaves) for f in (function, compiled)]
    torch.testing.assert_close(*outputs)
    grad = torch.randn(outputs[0].shape)
    for actual, expected in zip(*(torch.autograd.grad(o, leaves, grad) for o in outputs), strict=True):
        torch.testing.assert_close(actual, expected)


def test_operator_is_registered_soundly() -> None:
    """torch's own checks of the schema, the fake kernel and the autograd registration."""
    p = random_problem(dtype=torch.float32, channels_last=True, size=(4, 6))
    leaves = [t.requires_grad_() for t in p.tensors()]
    torch.library.opcheck(torch.ops.drconv.region_conv2d_torch, (*leaves, [1, 1, 0, 0, 1, 1, 1]))


def test_windows_are_numbers_or_pairs() -> None:
    x, weight, guide = torch.randn(1, 4, 6, 6), torch.randn(1, 2, 3, 4, 3, 3), torch.randn(1, 2, 3, 6)
    given = region_conv2d(x, weight, guide, stride=[2, 1], padding=[1, 1], dilation=torch.Size([1, 1]))
    torch.testing.assert_close(given, region_conv2d(x, weight, guide, stride=(2, 1), padding=1))
    with pytest.raises(ValueError, match="'same' must be a number or a pair"):
        region_conv2d(x, weight, guide, padding="same")
    with pytest.raises(ValueError, match="must be a number or a pair"):
        region_conv2d(x, weight, guide, stride=(1, 1, 1))


@pytest.mark.parametrize("scale", ["none", "region", "tap"])
@pytest.mark.parametrize("kernel", ["reference", "torch", None])
def test_one_image_without_a_batch(kernel: str | None, scale: str) -> None:
    p = random_problem(batch=1, scale=scale)
    expected = _call(p.x, p.weight, p.logits, scale=p.scale, kernel=kernel)
    factors = None if p.scale is None else p.scale[0]
    torch.testing.assert_close(_call(p.x[0], p.weight, p.logits[0], scale=factors, kernel=kernel), expected[0])


@pytest.mark.parametrize(
    ("option", "value"), [("stride", 0), ("padding", -1), ("dilation", 0), ("groups", 0), ("stride", 1.5)]
)
def test_options_out_of_range(option: str, value: float) -> None:
    p = random_problem(dtype=torch.float32)
    with pytest.raises(ValueError, match=f"{option}={value} must be a whole number"):
        region_conv2d(p.x, p.weight, p.logits, **{option: value})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kernel", ["reference", "torch", None])
def test_logits_that_are_no_numbers_choose_as_argmax_does(kernel: str | None, value: float) -> None:
    """The first NaN wins, as torch.argmax has it; with gradients and without, and without a trace of it elsewhere."""
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 9, 7)
    logits[torch.rand(logits.shape) < 0.3] = value
    weight = torch.arange(1.0, 6.0).view(1, 5, 1, 1, 1, 1)
    x = torch.ones(2, 1, 9, 7)
    expected = logits.argmax(1, keepdim=True) + 1.0
    assert torch.equal(_call(x, weight, logits, kernel=kernel), expected)
    leaf = logits.requires_grad_()
    y = _call(x, weight, leaf, kernel=kernel)
    assert torch.equal(y.detach(), expected)
    y.sum().backward()
    is_finite = torch.isfinite(logits.detach().softmax(1)).all(1)
    assert torch.isfinite(leaf.grad.movedim(1, -1)[is_finite]).all()
