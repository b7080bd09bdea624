"""Export: torch.export with the kernel of this machine, ONNX with ordinary operations, run by another library."""

from pathlib import Path

import pytest
import torch
from torch import nn

from drconv import fuse_for_inference, substitute


@pytest.fixture
def network() -> nn.Module:
    """A small DRConv network, guides shared and own, whose batch norms have seen data."""
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False), nn.BatchNorm2d(12),
        nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    )  # fmt: skip
    last = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU6())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(block), last, head)
    assert len(substitute(network, "drconv", ["1.0.0", "1.0.5", "2.0"], regions=4, input_size=32)) == 4
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(8, 3, 32, 32))
    return network.eval()


@torch.no_grad()
def test_torch_export_keeps_the_operators(network: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (x, torch.randn(5, 3, 32, 32)):
        torch.testing.assert_close(program.module()(batch), network(batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("is_fused", [False, True])
def test_onnx_runtime_gives_the_same_output(
    network: nn.Module, is_fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    expected = [(x, network(x)) for x in (torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32))]
    monkeypatch.setenv("DRCONV_KERNEL", "reference")
    exported = fuse_for_inference(network) if is_fused else network
    path = tmp_path / "network.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(exported, (expected[0][0],), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = runtime.InferenceSession(path)
    (name,) = (node.name for node in session.get_inputs())
    for x, y in expected:
        (output,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), y, rtol=1e-4, atol=1e-5)
