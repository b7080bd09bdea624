"""Dynamic Region-Aware Convolution (CVPR 2021).

``from drconv import DRConv2d, substitute`` needs nothing but torch. The names are loaded on first use, so that
``drconv.config`` can be imported without torch. The operators are registered as soon as torch is there, so that
``import drconv`` is enough for ``torch.export.load``.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drconv.nn import (
        PRINTED_FORM,
        CondConv2d,
        DeformableKernelConv2d,
        DRConv2d,
        LocalConv2d,
        count_cost,
        fuse_for_inference,
        region_conv2d,
        region_statistics,
        substitute,
    )

__version__ = "0.1.0"
__all__ = [
    "PRINTED_FORM",
    "CondConv2d",
    "DRConv2d",
    "DeformableKernelConv2d",
    "LocalConv2d",
    "count_cost",
    "fuse_for_inference",
    "region_conv2d",
    "region_statistics",
    "substitute",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'drconv' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module("drconv.nn"), name)


class _AfterTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers the operators right after torch has been imported, and then is gone."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("drconv.nn.kernels")


if "torch" in sys.modules:
    importlib.import_module("drconv.nn.kernels")
else:
    sys.meta_path.insert(0, _AfterTorch())
