"""The kernels behind ``region_conv2d``: one signature, several implementations, the same numbers.

Every kernel module offers two functions over the same five arguments::

    supports(x, weight, logits, scale, geometry) -> bool
    region_conv2d(x, weight, logits, scale, geometry) -> Tensor

x (B, C, H, W); weight (B or 1, M, O, C/groups, K, K) in the type of x; logits (B, M, Ho, Wo), already of the output's
size; scale (B, M), (B, M, K, K) or None. Logits and scale are fp32 (fp64 where x is fp64). The result (B, O, Ho, Wo)
has the type and memory format of x and is differentiable in the four tensors.
"""

import importlib
import logging
import os
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, compiler, cuda, device, is_grad_enabled, version
from torch import dtype as torch_dtype
from torch.utils._python_dispatch import _disable_current_modes

from drconv.nn.kernels.geometry import Geometry
from drconv.nn.kernels.transforms import is_transformed
from drconv.nn.kernels.trial import complaint

NAMES = ("reference", "torch", "cpu", "triton")
VARIABLE = "DRCONV_KERNEL"
PREFERRED = {"cpu": "cpu", "cuda": "triton"}
_OPTIONAL = ("cpu", "triton")  # need a compiler or a package that may be missing
_CHECKED = ("triton",)  # compiled for each device by what is installed there: tried out before they are used

_LOGGER = logging.getLogger(__name__)
_failures: dict[str, str] = {}  # why a module could not be imported
_faults: dict[tuple[str, torch_dtype, device], str | None] = {}  # what a kernel did wrong when it was tried

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Geometry], Tensor]


def _import(name: str) -> ModuleType | None:
    """The module of a kernel, or None where what it needs is not installed."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        if name in _OPTIONAL:
            _failures[name] = str(error)
            return None
        raise


# Imported here and not on first use: torch.compile cannot trace an import. Triton only where a GPU may want it.
_MODULES = {name: _import(name) for name in NAMES if name != "triton" or version.cuda is not None}
if _MODULES["cpu"] is not None:
    importlib.import_module(f"{__name__}.cpu_operators")


def load(name: str) -> ModuleType | None:
    """The module of a kernel, or None where what it needs is not installed.

    Raises:
        ValueError: no kernel has this name.
    """
    if name not in NAMES:
        raise ValueError(
            f"kernel={name!r} is unknown; use one of {', '.join(NAMES)} in the argument kernel or in {VARIABLE}"
        )
    if name not in _MODULES:
        _MODULES[name] = _import(name)
    return _MODULES[name]


def select(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    kernel: str | None = None,
) -> Kernel:
    """Choose the kernel: the argument, else the variable ``DRCONV_KERNEL``, else the best one for the device.

    Under function transforms (forward-mode derivatives, vmap, ``torch.func``) that is ``reference``.

    Raises:
        ValueError: the name is unknown, or the named kernel cannot do what is asked.
    """
    arguments = (x, weight, logits, scale, geometry)
    name = kernel or os.environ.get(VARIABLE)
    if is_transformed():
        return _select_for_transforms(name)
    wanted = name or PREFERRED.get(x.device.type, "torch")
    module = load(wanted)
    fault = None
    if module is not None and module.supports(*arguments):
        fault = _first_fault(wanted, x.dtype, x.device) if wanted in _CHECKED else None
        if fault is None:
            return module.region_conv2d
    if name:
        key, chosen = ("kernel", f"kernel={name!r}") if kernel else (VARIABLE, f"{VARIABLE}={name}")
        raise ValueError(
            f"{chosen} cannot run on {x.device.type} with x {tuple(x.shape)} of {x.dtype}: "
            f"{fault or reason_against(name, module)}; leave {key} empty to choose"
        )
    return load("torch").region_conv2d  # type: ignore[union-attr]


@compiler.assume_constant_result
def _first_fault(name: str, dtype: torch_dtype, place: device) -> str | None:
    """What is wrong with a kernel, tried once in a process for each type and device; a fault is logged in one line.

    A CUDA graph that is being captured cannot wait for an answer: there the kernel is taken untried.
    """
    key = (name, dtype, place)
    if key not in _faults:
        module = load(name)
        assert module is not None  # it has just said that it supports this
        if place.type == "cuda" and cuda.is_current_stream_capturing():
            return None
        with _disable_current_modes():  # no counting and no fake tensors
            _faults[key] = complaint(module.region_conv2d, dtype, place)
        if _faults[key] is not None:
            _LOGGER.warning("the %s kernel of DRConv is not used on %s, torch is: %s", name, place, _faults[key])
    return _faults[key]


def _select_for_transforms(name: str | None) -> Kernel:
    if name not in (None, "", "reference"):
        load(name)  # an unknown name is said first
        raise ValueError(
            f"kernel={name!r} has no forward-mode derivatives and no rules for vmap and torch.func; "
            f'use kernel="reference", or leave kernel and {VARIABLE} empty to choose'
        )
    return load("reference").region_conv2d  # type: ignore[union-attr]


def reason_against(name: str, module: ModuleType | None) -> str:
    """Why a kernel cannot be used."""
    if module is None:
        return f"it is not available, as {name} could not be imported ({_failures.get(name, 'not installed')})"
    missing = module.why_not() if hasattr(module, "why_not") else None
    return "it does not support this" if missing is None else f"it is not available, as {missing}"


def pack_filters(weight: Tensor) -> Tensor | None:
    """Filters (M, O, C, 1, 1) as the kernel that runs whole layers reads them fastest, or None where none does."""
    module = _MODULES["cpu"]
    return None if module is None else module.pack(weight)


def select_layer(x: Tensor, weight: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The kernel that runs a whole 1x1 layer in one call without gradients, or None.

    Call it with x; weight (M or experts, O, C, 1, 1); the guide's filter (M, C, 1, 1) or its logits of any size, and
    whether it is the logits; the batch norm of a filter's logits as [mean, variance] or an empty list, and its eps; the
    generator's weight and bias or None, and its peak; the bias (O) or None; the batch norm of the output as [mean,
    variance, weight, bias] or an empty list, and its eps; the upper end of a ReLU or None; the filters packed by
    ``pack_filters`` or None. It returns the output, and the logits if it computed them.
    """
    if is_grad_enabled() or os.environ.get(VARIABLE, "cpu") != "cpu" or is_transformed():
        return None
    module = _MODULES["cpu"]
    return module.run_layer() if module is not None and module.supports_layer(x, weight) else None
