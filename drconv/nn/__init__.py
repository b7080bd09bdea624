"""DRConv and the layers it is compared with; torch and the standard library only."""

from drconv.nn.condconv import CondConv2d, RoutedSequential
from drconv.nn.conv import DRConv2d
from drconv.nn.cost import count_cost
from drconv.nn.deformable import DeformableKernelConv2d
from drconv.nn.diagnostics import auxiliary_loss, gradient_norms, keep_logits, region_statistics
from drconv.nn.functional import region_conv2d
from drconv.nn.fusion import fuse_for_inference
from drconv.nn.generators import pool_inside
from drconv.nn.guide import Guide, GuidedSequential
from drconv.nn.local import LocalConv2d
from drconv.nn.options import PRINTED_FORM
from drconv.nn.selection import is_pointwise
from drconv.nn.substitute import substitute

__all__ = [
    "PRINTED_FORM",
    "CondConv2d",
    "DRConv2d",
    "DeformableKernelConv2d",
    "Guide",
    "GuidedSequential",
    "LocalConv2d",
    "RoutedSequential",
    "auxiliary_loss",
    "count_cost",
    "fuse_for_inference",
    "gradient_norms",
    "is_pointwise",
    "keep_logits",
    "pool_inside",
    "region_conv2d",
    "region_statistics",
    "substitute",
]
