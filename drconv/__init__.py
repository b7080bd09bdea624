"""Dynamic Region-Aware Convolution (CVPR 2021).

``from drconv import DRConv2d, substitute`` needs nothing but torch. The names are loaded on first use, so that
``drconv.config`` can be imported without torch.
"""

import importlib
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
