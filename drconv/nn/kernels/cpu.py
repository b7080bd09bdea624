"""The C++ kernel for CPUs: built with torch's extension loader on first use, then cached.

1x1 convolutions with stride 1 and one group, in fp32 or fp64, in either memory format; the rest is left to ``torch``.
``cpu_common.h`` holds the inner loop, ``cpu_forward.h`` and ``cpu_backward.h`` the two directions, ``cpu.cpp`` the
operators. The measurements behind them are in ``docs/performance.md``.
"""

import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from drconv.nn.kernels.geometry import Geometry

_LOGGER = logging.getLogger(__name__)
_failure: str | None = None  # why the extension could not be built
_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}


@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Whether the extension is built; torch.compile asks once, as it cannot trace a build."""
    return _load()


@functools.cache
def _load() -> bool:
    """Build or load the extension; without a compiler, say so once and return False."""
    try:
        torch.ops.load_library(_build())
        torch.library.register_autograd("drconv::cpu_region_conv2d", _backward, setup_context=_keep)
        torch.library.register_autograd("drconv::cpu_region_conv2d_backward", _second_backward)
    except (ImportError, OSError, RuntimeError) as error:
        global _failure
        _failure = (str(error).strip() or type(error).__name__).splitlines()[0]
        _LOGGER.warning("the C++ kernel of DRConv is not available, the torch kernel is used: %s", _failure)
        return False
    return True


def why_not() -> str | None:
    """Why the kernel could not be built, or None where it could or nobody has tried."""
    return _failure


def _build() -> Path:
    """Compile unless done before; the folder's name says for which sources, torch and processor.

    The lock belongs to the open file, so that a process that is killed leaves none behind. The loader of torch is
    imported only to compile: it takes a second.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    sources = sorted(Path(__file__).parent.glob("cpu*.[ch]*"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources if source.suffix != ".py"))
    digest.update(f"{torch.__version__} {platform.machine()} {_flags(capability)}".encode())
    name = f"drconv_cpu_{digest.hexdigest()[:16]}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "drconv"
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    library, finished = folder / f"{name}.so", folder / "finished"
    with open(folder / "flock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            _compile(name, folder, capability)
            finished.touch()
    return library


def _missing_tools() -> str | None:
    """What the build lacks and how to get it, or None; the loader of torch would say it in a page."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0] if compiler.split() else "c++") is None:
        return f"there is no C++ compiler {compiler!r}; install g++ or name yours in CXX"
    if shutil.which("ninja") is None:
        return "there is no ninja on the PATH; pip install ninja, or activate the environment that has it"
    return None


def _compile(name: str, folder: Path, capability: str) -> None:
    if (missing := _missing_tools()) is not None:
        raise OSError(missing)
    from torch.utils import cpp_extension

    (folder / "lock").unlink(missing_ok=True)  # the loader's own lock, of a process that was killed
    _LOGGER.info("building the C++ kernel of DRConv, once, for about a minute")
    cpp_extension.load(
        name=name,
        sources=[str(Path(__file__).with_name("cpu.cpp"))],
        extra_cflags=_flags(capability),
        build_directory=str(folder),
        is_python_module=False,
    )


def _flags(capability: str) -> list[str]:
    macros = ["-DAT_PARALLEL_OPENMP=1", f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    return ["-O3", "-std=c++20", "-fopenmp", *macros, *_FLAGS.get(capability, [])]


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


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved, needs = context.saved_tensors, context.needs_input_grad
    gradients = torch.ops.drconv.cpu_region_conv2d_backward.default(grad, *saved, *needs)
    return tuple(gradient if is_needed else None for gradient, is_needed in zip(gradients, needs, strict=True))


def _second_backward(context: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError('the C++ kernel of DRConv has no second derivative; use kernel="reference" for it')


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
