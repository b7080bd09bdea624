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


def output_size(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Height and width of the convolution's output.

    Raises:
        ValueError: the filter does not fit into the padded input.
    """
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (weight.shape[4] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + 2 * padding[1] - dilation[1] * (weight.shape[5] - 1) - 1) // stride[1] + 1
    if height < 1 or width < 1:
        raise ValueError(
            f"a {weight.shape[4]}x{weight.shape[5]} filter with dilation={dilation} does not fit into an input of "
            f"{x.shape[2]}x{x.shape[3]} with padding={padding}; use a larger input or more padding"
        )
    return height, width
