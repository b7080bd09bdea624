"""Base of layers whose parameters are stacks of filters."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class FilterBank(nn.Module):
    """Module with stacked filters (N, O, C/groups, K, K) that survives ``network.to(memory_format=...)``.

    ``nn.Module.to`` asks every parameter of four or five dimensions for the format, and ``torch.channels_last`` exists
    for four only: one stack would make the call fail for the whole network. Stacks keep their own layout.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def apply(tensor: Tensor) -> Tensor:
            return fn(tensor.unsqueeze(0)).squeeze(0) if tensor.dim() == 5 else fn(tensor)

        return super()._apply(apply, recurse)
