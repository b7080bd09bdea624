"""Shared libraries of the C++ kernel for programs without Python, built once and kept beside PyTorch's extensions."""

import fcntl
import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils import cpp_extension

from drconv.errors import ExportError
from drconv.nn.kernels import cpu

SOURCES = Path(__file__).parent / "native"
KERNELS = Path(cpu.__file__).parent
_HEADERS = "DRCONV_ONNXRUNTIME_INCLUDE"


def torch_library() -> Path:
    """``libdrconv_torch.so``: the operators ``drconv::*`` for libtorch, as ``TORCH_LIBRARY`` registers them.

    A program loads it with ``dlopen`` or ``torch::...`` before a package of ours. It is what Python uses, linked again
    without the part of PyTorch that needs an interpreter.

    Raises:
        ExportError: there is no compiler, or it fails.
    """
    if not cpu.is_available():
        raise ExportError(f"the C++ kernel is not available: {cpu.why_not()}")
    folder = cpu._build().parent
    library = folder / "libdrconv_torch.so"
    objects = sorted(folder.glob("*.o"))
    folders = [f"-L{path}" for path in cpp_extension.library_paths()]
    _build(library, [*map(str, objects), "-fopenmp", *folders, "-ltorch", "-ltorch_cpu", "-lc10"])
    return library


def onnxruntime_library() -> Path:
    """``libdrconv_onnxruntime.so``: the operator ``drconv::RegionConv`` for onnxruntime.

    Raises:
        ExportError: onnxruntime's headers are not there, there is no compiler, or it fails.
    """
    headers = os.environ.get(_HEADERS, "")
    if not (Path(headers) / "onnxruntime_cxx_api.h").is_file():
        raise ExportError(
            f"the custom operator needs the headers of onnxruntime, which its Python package does not hold; name the "
            f"folder with onnxruntime_cxx_api.h in {_HEADERS} (docs/export.md says where to get it), found {headers!r}"
        )
    capability = torch.backends.cpu.get_cpu_capability()
    source = SOURCES / "onnxruntime.cpp"
    flags = [flag for flag in cpu._flags(capability) if flag != "-fopenmp" and "AT_PARALLEL" not in flag]
    includes = [headers, str(KERNELS), *cpp_extension.include_paths()]
    words = [*flags, "-fPIC", "-fvisibility=hidden", *(f"-I{path}" for path in includes), str(source)]
    content = b"".join(path.read_bytes() for path in [source, *sorted(KERNELS.glob("cpu*.h"))])
    digest = hashlib.sha256(content + " ".join([*words, torch.__version__, platform.machine()]).encode())
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "drconv")
    library = root / f"drconv_onnxruntime_{digest.hexdigest()[:16]}" / "libdrconv_onnxruntime.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    _build(library, [*words, "-Wl,-Bsymbolic", "-Wl,--no-undefined"])
    return library


def _build(library: Path, words: Sequence[str]) -> None:
    """Run the compiler unless the library is there; one process at a time."""
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return
        temporary = library.with_suffix(".tmp")
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        try:
            result = subprocess.run([*compiler, "-shared", *words, "-o", str(temporary)], capture_output=True, text=True)
        except FileNotFoundError:
            raise ExportError(f"there is no C++ compiler {compiler[0]!r}; install g++ or name yours in CXX") from None
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line or "undefined" in line]
            raise ExportError(f"{library.name} cannot be built: {(errors or ['the compiler failed'])[0]}")
        os.replace(temporary, library)
