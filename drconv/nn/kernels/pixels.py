"""Maps whose pixels have one index, as the Triton kernels read them."""

from torch import Tensor


def flattened(x: Tensor) -> Tensor:
    """``x`` with rows that follow one another, so that a pixel has one index; a copy only where they do not."""
    is_line = x.shape[2] == 1 or x.shape[3] == 1
    return x if is_line or x.stride(2) == x.shape[3] * x.stride(3) else x.contiguous()


def strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of image, channel and pixel of (B, C, H, W); see ``flattened``."""
    # The stride of a dimension of one element can be any number.
    return x.stride(0), x.stride(1), x.stride(2 if x.shape[3] == 1 else 3)
