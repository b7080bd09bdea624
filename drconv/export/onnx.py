"""A network as an ONNX file, checked against PyTorch."""

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drconv.errors import ConfigError, ExportError
from drconv.export.layers import ExportedGuide, exported, kept_masks
from drconv.export.native import onnxruntime_library
from drconv.files import replacing
from drconv.nn import kernels
from drconv.nn.fusion import fuse_for_inference

TOLERANCE = 1e-4  # of the largest output of a picture
PICTURES = 5  # drawn for the check
MOST_IMAGES = 65535  # of a batch
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: of the file.
        outputs: names, the network's first, then those of the masks.
        layers: number of DRConvs that were written as sorted products, or as our operator.
        errors: for each drawn picture the largest difference to PyTorch, over the largest output.
    """

    path: Path
    outputs: list[str]
    layers: int
    errors: list[float]


def export_onnx(
    network: nn.Module,
    path: Path,
    example: Tensor,
    *,
    masks: Sequence[str] = (),
    custom_operator: bool = False,
) -> OnnxExport:
    """Write a network (B, C, H, W) -> (B, ...) as ONNX; the batch is free, the size of the pictures is the example's.

    Batch norms are folded where ``fuse_for_inference`` can. The network itself stays as it is.

    Args:
        network: with DRConv, its rivals, or neither.
        path: of the file.
        example: (2 or more, C, H, W) in the type of the network.
        masks: patterns of guides' names, such as ``"stage4.*"``; their masks become outputs ``mask.<name>``,
            int64 (B, H', W'), the region of each position.
        custom_operator: write DRConvs as nodes ``drconv::RegionConv``, our operator for onnxruntime, instead of
            standard operators; ``session_options(custom_operator=True)`` loads it.

    Raises:
        ConfigError: a pattern fits no guide, or a package is missing.
        ExportError: onnxruntime computes something else than PyTorch.
    """
    _require_packages()
    from drconv.export.expand import expand, use_rows

    module = WithMasks(exported(fold(network)), masks).eval()
    names = ["output", *(f"mask.{name}" for name in module.names)]
    with torch.no_grad(), _reference_kernel():
        program: Any = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MOST_IMAGES)},),
            input_names=["image"],
            output_names=names,
            verbose=False,
        )
    layers = (use_rows if custom_operator else expand)(program.model)
    with replacing(path) as temporary:
        program.save(temporary)
        errors = compare(network, temporary, example, session_options(custom_operator))
    return OnnxExport(path, names, layers, errors)


def session_options(custom_operator: bool = False) -> Any:
    """``onnxruntime.SessionOptions``, with our operator registered where it is asked for.

    Raises:
        ExportError: the operator cannot be built, see ``onnxruntime_library``.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if custom_operator:
        options.register_custom_ops_library(str(onnxruntime_library()))
    return options


def compare(network: nn.Module, path: Path, example: Tensor, options: Any = None) -> list[float]:
    """Run drawn pictures of the example's size, and batches of other sizes, through both.

    Where two regions are a rounding apart, the two may choose differently at a position; such a picture differs by
    more. So more than half of the pictures must agree.

    Returns:
        For each picture the largest difference over the largest output.

    Raises:
        ExportError: they do not agree.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(PICTURES, *example.shape[1:], generator=generator).to(example)
    network, errors = copy.deepcopy(network).eval(), []
    with torch.inference_mode():
        for batch in (pictures[:1], pictures[1:]):
            ours, theirs = network(batch), torch.from_numpy(session.run(["output"], {"image": batch.numpy()})[0])
            if ours.shape != theirs.shape:
                raise ExportError(
                    f"onnxruntime gives {tuple(theirs.shape)} for {tuple(batch.shape)}, PyTorch {tuple(ours.shape)}"
                )
            difference, size = ((ours - theirs).flatten(1).abs(), ours.flatten(1).abs())
            errors += (difference.amax(1) / size.amax(1).clamp(min=1e-30)).tolist()
    middle = sorted(errors)[len(errors) // 2]
    if not middle <= TOLERANCE:
        raise ExportError(
            f"onnxruntime differs from PyTorch by {middle:.1e} of the largest output, at most {TOLERANCE:.0e} is "
            "allowed; nothing was written; please report the network"
        )
    return errors


class WithMasks(nn.Module):
    """The network's output, followed by the masks of the guides whose names fit one of the patterns.

    Attributes:
        names: of these guides.

    Raises:
        ConfigError: a pattern fits no guide.
    """

    def __init__(self, network: nn.Module, patterns: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        guides = {
            name.removesuffix(".guide"): module
            for name, module in network.named_modules()
            if isinstance(module, ExportedGuide)
        }
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in guides):
                raise ConfigError(f"masks={pattern} fits no guide; they are {', '.join(guides) or 'none'}")
        self.names = [name for name in guides if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for name in self.names:
            guides[name].kept_as = name

    def forward(self, image: Tensor) -> tuple[Tensor, ...] | Tensor:
        if not self.names:
            return self.network(image)
        with kept_masks() as masks:
            output = self.network(image)
            return output, *(masks[name] for name in self.names)


def fold(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with its batch norms folded if its forward pass can be traced."""
    network = copy.deepcopy(network).eval()
    try:
        return fuse_for_inference(network)
    except ValueError as error:
        _LOGGER.warning("batch norms stay: %s", error)
        return network


@contextmanager
def _reference_kernel() -> Iterator[None]:
    """What is not written as a sorted product goes through the kernel that consists of ordinary operations."""
    before = os.environ.get(kernels.VARIABLE)
    os.environ[kernels.VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[kernels.VARIABLE]
        else:
            os.environ[kernels.VARIABLE] = before


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}, which is not installed: pip install 'drconv[export]'") from None
