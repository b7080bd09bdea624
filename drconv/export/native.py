"""Shared libraries of the C++ kernel for programs without Python."""

import hashlib
import os
from pathlib import Path

import torch

from drconv.errors import ExportError
from drconv.nn.kernels import build, cpu

KERNELS = Path(cpu.__file__).parent
SOURCE = Path(__file__).with_name("onnxruntime.cpp")
HEADERS = "DRCONV_ONNXRUNTIME_INCLUDE"


def torch_library() -> Path:
    """The operators ``drconv::*`` for libtorch, registered when the library is loaded: what PyTorch in Python uses.

    It needs libtorch_cpu and libc10, and no interpreter. A program loads it with ``dlopen`` before a package of ours.

    Raises:
        ExportError: it cannot be built.
    """
    try:
        return cpu._build()
    except OSError as error:
        raise ExportError(f"the C++ kernel cannot be built: {error}") from error


def onnxruntime_library() -> Path:
    """The operator ``drconv::RegionConv`` for onnxruntime's ``register_custom_ops_library``. It needs no PyTorch.

    Raises:
        ExportError: onnxruntime's headers are not there, or it cannot be built.
    """
    folder = Path(os.environ.get(HEADERS, ""))
    if not (folder / "onnxruntime_cxx_api.h").is_file():
        raise ExportError(
            f"the custom operator needs onnxruntime's headers, which its Python package does not hold; name the folder "
            f"that has onnxruntime_cxx_api.h in {HEADERS} (docs/export.md says where to get it), found "
            f"{os.environ.get(HEADERS, '')!r}"
        )

    def command(library: Path) -> list[str]:
        root = Path(torch.__file__).parent / "include"
        includes = [folder, KERNELS, root, root / "torch" / "csrc" / "api" / "include"]
        words = [word for path in includes for word in ("-isystem", str(path))]
        links = ["-Wl,-Bsymbolic", "-Wl,--no-undefined"]
        return [*build.compiler(), *_flags(), *words, "-shared", "-fPIC", str(SOURCE), "-o", str(library), *links]

    content = b"".join(path.read_bytes() for path in [SOURCE, *sorted(KERNELS.glob("cpu*.h"))])
    content += (folder / "onnxruntime_c_api.h").read_bytes()
    digest = hashlib.sha256(content + f"{torch.__version__} {_flags()}".encode()).hexdigest()[:16]
    try:
        return build.find_or_build(f"drconv_onnxruntime_{digest}", command)
    except OSError as error:
        raise ExportError(f"the custom operator cannot be built: {error}") from error


def _flags() -> list[str]:
    """The kernel's, without OpenMP: onnxruntime brings its threads."""
    return [flag for flag in cpu._flags() if flag != "-fopenmp" and "AT_PARALLEL" not in flag] + ["-fvisibility=hidden"]
