"""The C++ kernel for CPUs: built with the machine's compiler on first use, then cached.

1x1 convolutions with stride 1 and one group, in fp32 or fp64, in either memory format; the rest is left to ``torch``.
``cpu_common.h`` holds the inner loop, ``cpu_forward.h`` and ``cpu_backward.h`` the two directions, ``cpu.cpp`` the
operators, ``cpu_operators.py`` their registration. The measurements behind them are in ``docs/performance_details.md``.
"""

import functools
import hashlib
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from drconv.nn.kernels import build
from drconv.nn.kernels.geometry import Geometry

_LOGGER = logging.getLogger(__name__)
_failure: str | None = None  # why the extension could not be built
_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}
_SANITIZER = ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"]


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Whether the extension is built; torch.compile asks once, as it cannot trace a build."""
    return _load()


@functools.cache
def _load() -> bool:
    """Build or load the extension; without a compiler, say so once and return False."""
    try:
        torch.ops.load_library(_build())
    except (OSError, RuntimeError) as error:
        global _failure
        _failure = (str(error).strip() or type(error).__name__).splitlines()[0]
        _LOGGER.warning("the C++ kernel of DRConv is not available, the torch kernel is used: %s", _failure)
        return False
    return True


def why_not() -> str | None:
    """Why the kernel could not be built, or None where it could or nobody has tried."""
    return _failure


def _build() -> Path:
    """Compile unless done before; the library's name says for which sources, torch, processor and flags."""
    sources = sorted(Path(__file__).parent.glob("cpu*.[ch]*"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources if source.suffix != ".py"))
    digest.update(f"{torch.__version__} {platform.machine()} {_flags()}".encode())
    return build.find_or_build(f"drconv_cpu_{digest.hexdigest()[:16]}", _command)


def _command(library: Path) -> list[str]:
    """The compiler's command line. torch's extension loader would give the same, but is imported in a second."""
    words = build.compiler()
    _LOGGER.info("building the C++ kernel of DRConv, once, for about a minute")
    root = Path(torch.__file__).parent
    headers = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    includes = [word for folder in headers for word in ("-isystem", str(folder))]
    source = str(Path(__file__).with_name("cpu.cpp"))
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    return [*words, *_flags(), *includes, "-shared", "-fPIC", source, "-o", str(library), *libraries]


def _flags() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    macros = ["-DAT_PARALLEL_OPENMP=1", f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}", abi]
    optimize = _SANITIZER if os.environ.get("DRCONV_SANITIZE") else ["-O3"]
    return [*optimize, "-std=c++20", "-fopenmp", *macros, *_FLAGS.get(capability, [])]


def supports(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> bool:
    """1x1, stride 1, one group, everything fp32 or everything fp64, and the extension built."""
    return (
        geometry.is_matrix_product(weight)
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == weight.dtype == logits.dtype
        and (scale is None or scale.dtype == x.dtype)
        and x.device.type == "cpu"
        and is_available()
    )


def supports_layer(x: Tensor, weight: Tensor) -> bool:
    """Same type, fp32 or fp64, outside autocast; the caller has seen to 1x1 filters and stride 1."""
    dtype = x.dtype
    return (
        x.is_cpu
        and (dtype is torch.float32 or dtype is torch.float64)
        and weight.dtype is dtype
        and not torch.is_autocast_enabled("cpu")
        and is_available()
    )


def run_layer() -> Callable[..., tuple[Tensor, Tensor]]:
    """The operator of a DRConv layer without gradients in one call; see ``kernels.select_layer``."""
    return torch.ops.drconv.cpu_drconv.default


def pack(weight: Tensor) -> Tensor | None:
    """Filters (M, O, C, 1, 1) in the order in which the product reads them, or None where this kernel does not run."""
    if weight.dtype not in (torch.float32, torch.float64) or not weight.is_cpu or not is_available():
        return None
    return torch.ops.drconv.cpu_pack.default(weight.detach())


def region_conv2d(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Eq. 4-8 with one product per pixel forward, and m + 1 backward (m for the guide's gradient)."""
    if scale is not None and scale.dim() > 2:
        scale = scale.flatten(1)
    return torch.ops.drconv.cpu_region_conv2d.default(x, weight, logits, scale)
