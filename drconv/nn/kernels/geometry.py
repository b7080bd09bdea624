"""What a convolution's window does, as every kernel takes it."""

from typing import NamedTuple

from torch import Tensor

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """The options of ``torch.nn.functional.conv2d``, as pairs of rows and columns."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def is_matrix_product(self, weight: Tensor) -> bool:
        """Whether each output position is one product of one pixel: 1x1, stride 1, no padding, one group."""
        return weight.shape[4:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
