"""What a convolution's window does, as every kernel takes it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Pair = tuple[int, int]


def pair(value: int | Sequence[int]) -> Pair:
    """Rows and columns, as ``nn.Conv2d`` takes them: a number for both, or two numbers.

    Raises:
        ValueError: it is a word, or other than two numbers.
    """
    if isinstance(value, str):
        raise ValueError(f"{value!r} must be a number or a pair; padding 'same' is dilation * (kernel_size - 1) / 2")
    if not isinstance(value, Sequence):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{value} must be a number or a pair (rows, columns)")
    return value[0], value[1]


class Geometry(NamedTuple):
    """The options of ``torch.nn.functional.conv2d``, as pairs of rows and columns."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def is_matrix_product(self, weight: Tensor) -> bool:
        """Whether each output position is one product of one pixel: 1x1, stride 1, no padding, one group."""
        return weight.shape[4:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
