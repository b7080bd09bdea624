"""A network as a package of AOTInductor: compiled ahead, loaded by C++ without Python."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from drconv.errors import ExportError
from drconv.export.native import torch_library
from drconv.export.onnx import MOST_IMAGES, PICTURES, TOLERANCE, fold


@dataclass(frozen=True)
class PackageExport:
    """What was written.

    Attributes:
        path: of the package.
        library: the operators that the program loads before it, beside the package.
        error: the largest difference to PyTorch on drawn pictures, over the largest output.
    """

    path: Path
    library: Path
    error: float


class ChannelsLast(nn.Module):
    """The network on pictures in the usual layout, which it brings into the one that its convolutions like."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.contiguous(memory_format=torch.channels_last))


def _replace_infinities(program: torch.export.ExportedProgram) -> None:
    """The open end of a ReLU as a number: a package lists our operators' arguments in JSON, which has no infinity."""
    largest = torch.finfo(torch.float32).max

    def replace(value: Any) -> Any:
        return largest if isinstance(value, float) and value == float("inf") else value

    for node in program.graph.nodes:
        if str(node.target).startswith("drconv."):
            node.args, node.kwargs = map_aggregate(node.args, replace), map_aggregate(node.kwargs, replace)


def export_package(network: nn.Module, path: Path, example: Tensor) -> PackageExport:
    """Compile a network (B, C, H, W) -> (B, ...) ahead; the batch is free, the size of the pictures is the example's.

    The package is for this kind of processor and this version of PyTorch. ``libdrconv_torch.so``, the operators of
    DRConv, is put beside it; ``examples/deploy.cpp`` loads both.

    Args:
        network: with DRConv or without; it stays as it is.
        path: of the package, ``*.pt2``.
        example: (2 or more, C, H, W).

    Raises:
        ExportError: the compiler fails, or the package computes something else than PyTorch.
    """
    if path.suffix != ".pt2":
        raise ExportError(f"out={path} must end in .pt2, as torch wants it")
    library = torch_library()
    module = ChannelsLast(fold(network)).eval()
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    pictures = torch.randn(PICTURES, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        module(example)  # packs the filters, once for all calls of the package
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
        _replace_infinities(program)
        file = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / path.name))
        expected, ours = module(pictures), torch._inductor.aoti_load_package(file)(pictures)
        error = float((expected - ours).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise ExportError(f"the package differs from PyTorch by {error:.1e} of the largest output")
        os.replace(file, path)
    beside = path.with_name("libdrconv_torch.so")
    shutil.copyfile(library, beside)
    return PackageExport(path, beside, error)
