"""Export: ONNX of standard operators, run by another library beside PyTorch; torch.export with our kernel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from drconv import DRConv2d, substitute
from drconv.errors import ConfigError, ExportError
from drconv.export import export_onnx
from drconv.export.layers import resize_mask
from drconv.export.onnx import compare
from drconv.nn import CondConv2d, DeformableKernelConv2d, LocalConv2d
from models.mobilefacenet import Bottleneck
from models.shufflenetv2 import ShuffleBlock

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def warmed(network: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, its batch norms having seen data."""
    with torch.no_grad():
        for _ in range(3):
            network.train()(x + 0.1 * torch.randn_like(x))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A block of every network family as the paper replaces it, then every other form of the layer."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(ShuffleBlock(8, 24, 2), ShuffleBlock(24, 24, 1)),  # a guide of two sizes, one of one
        InvertedResidual(24, 24, 1, 2),
        DepthwiseSeparableConv(24, 16, act_layer=nn.ReLU6),  # its DRConv has a guide of its own
        Bottleneck(16, 16, 2, 1),
    )
    layers = ["1.*.branch2.[05]", "2.conv.0.0", "2.conv.2", "3.conv_pw", "4.main.[06]"]
    assert len(substitute(network, "drconv", layers, regions=4, input_size=24)) == 13  # 9 layers, 4 shared guides
    tail = [
        DRConv2d(16, 12, 3, 2, 1, regions=3, groups=2),  # a scale for each tap
        DRConv2d(12, 12, 3, padding=1, groups=12, regions=3),  # by the reference kernel
        DRConv2d(12, 10, 1, regions=3, hidden=6, generator_bias=True),
        DRConv2d(10, 12, 1, regions=3, generator="experts", experts=4),
        DRConv2d(12, 6, 1, stride=(2, 1), regions=2, scale=False, guide_stride=2),
    ]
    for conv in tail:
        network.append(conv).append(nn.BatchNorm2d(conv.out_channels))  # else the bias is all that is left at the end
    network.append(nn.Flatten())
    return warmed(network, torch.randn(8, 3, 24, 24))


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    return path, export_onnx(network, path, torch.randn(2, 3, 24, 24), masks=["1.*", "3.conv_pw"])


@torch.no_grad()
def test_onnx_gives_the_same_output_for_every_batch(network: nn.Module, exported: tuple[Path, Any]) -> None:
    path, report = exported
    session = onnxruntime.InferenceSession(path)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())  # a copy was folded
    assert report.layers == 12  # not the one with 12 groups, nor that of experts
    assert sorted(report.errors)[len(report.errors) // 2] < 1e-5
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 24, 24)
        y = torch.from_numpy(session.run(["output"], {"image": x.numpy()})[0])
        torch.testing.assert_close(y, network(x), rtol=1e-4, atol=1e-5)


def test_onnx_consists_of_standard_operators_and_folded_norms(exported: tuple[Path, Any]) -> None:
    model = onnx.load(exported[0])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not {"BatchNormalization", "Loop", "If"} & {node.op_type for node in model.graph.node}
    # One sort for each mask: two in the block of stride 2, one in every other block and for every other layer.
    assert sum(node.op_type == "ScatterElements" for node in model.graph.node) == 2 + 1 + 1 + 1 + 1 + 3


@torch.no_grad()
def test_onnx_gives_masks_on_request(network: nn.Module, exported: tuple[Path, Any]) -> None:
    path, report = exported
    assert report.outputs == ["output", "mask.1.0.branch2", "mask.1.1.branch2", "mask.3.conv_pw"]
    x, logits = torch.randn(3, 3, 24, 24), {}
    hooks = [
        network.get_submodule(f"{name.removeprefix('mask.')}.guide").register_forward_hook(
            lambda _, x, y, name=name: logits.__setitem__(name, y)
        )
        for name in report.outputs[1:]
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    session = onnxruntime.InferenceSession(path)
    for name, mask in zip(report.outputs[1:], session.run(report.outputs[1:], {"image": x.numpy()}), strict=True):
        assert (torch.from_numpy(mask) == logits[name].argmax(1)).float().mean() > 0.999


def test_a_pattern_that_fits_no_guide_and_a_wrong_file_are_refused(
    network: nn.Module, exported: tuple[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"masks=nothing fits no guide; they are 1\.0\.branch2"):
        export_onnx(network, tmp_path / "x.onnx", torch.randn(2, 3, 24, 24), masks=["nothing"])
    assert not list(tmp_path.iterdir())
    model = onnx.load(exported[0])
    kernel = next(value for value in model.graph.initializer if value.name.endswith("0.0.weight"))
    kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * 2, kernel.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ExportError, match="differs from PyTorch by"):
        compare(network, tmp_path / "wrong.onnx", torch.randn(2, 3, 24, 24))


def test_masks_are_resized_as_interpolation_resizes_logits() -> None:
    for length in range(1, 33):
        mask = torch.arange(length).view(1, 1, length)
        for wanted in range(1, 33):
            expected = torch.nn.functional.interpolate(mask[None].float(), (1, wanted), mode="nearest")[0].long()
            assert torch.equal(resize_mask(mask, (1, wanted)), expected), (length, wanted)


@torch.no_grad()
def test_rivals_export_with_a_free_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(),
        CondConv2d(8, 12, 3, 2, 1, experts=3, groups=2), CondConv2d(12, 8, 1, experts=3), nn.BatchNorm2d(8),
        DeformableKernelConv2d(8, 8, 3, padding=1, groups=8), DeformableKernelConv2d(8, 10, 1),
        DeformableKernelConv2d(10, 6, 3, padding=1), LocalConv2d(6, 4, 3, 2, 1, input_size=6), nn.Flatten(),
    )  # fmt: skip
    warmed(network, torch.randn(4, 3, 24, 24))
    assert max(export_onnx(network, tmp_path / "rivals.onnx", torch.randn(2, 3, 24, 24)).errors) < 1e-4


@torch.no_grad()
def test_torch_export_keeps_the_operators(network: nn.Module) -> None:
    x = torch.randn(2, 3, 24, 24)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (x, torch.randn(5, 3, 24, 24)):
        torch.testing.assert_close(program.module()(batch), network(batch), rtol=1e-4, atol=1e-5)
