"""Filters in the order in which the C++ kernel reads them, kept where that was asked for.

Packing once pays where a layer has large filters and few pixels. Whether the filters have changed since cannot be known
in general (writes through ``.data``, by numpy, by another process), so nothing is kept unasked: only
``fuse_for_inference``, whose networks are not trained any more, asks.
"""

from typing import Any

import torch
from torch import Tensor

from drconv.nn.kernels import pack_filters


class PackedFilters:
    """The packed filters of one layer, made when they are first wanted, and again when the filters are seen to change.

    Seen are a new parameter, a move to another type or place, and changes in place that PyTorch counts, such as
    ``load_state_dict``; after any other change call ``fuse_for_inference`` again.

    Attributes:
        is_asked_for: whether to pack at all.
    """

    def __init__(self) -> None:
        self.is_asked_for = False
        self.forget()

    def forget(self) -> None:
        """Pack anew when the filters are wanted the next time."""
        self._packed: Tensor | None = None
        self._source: Tensor | None = None  # keeps the memory, so that its address stays its own
        self._version = -1

    def ask(self) -> None:
        """Pack from now on, and anew if that was asked for before."""
        self.forget()
        self.is_asked_for = True

    def get(self, weight: Tensor) -> Tensor | None:
        """The packed form of filters (M, O, C, 1, 1), or None where it is not asked for or cannot be kept."""
        if torch.compiler.is_compiling() or not self.is_asked_for:
            return self._packed  # a compiled network has the filters as they were
        if weight.is_inference():
            return None
        source = self._source
        if (
            source is None
            or source.data_ptr() != weight.data_ptr()
            or self._version != weight._version
            or source.dtype is not weight.dtype
            or not weight.is_contiguous()
        ):
            self._packed = pack_filters(weight)
            self._source, self._version = weight.detach(), weight._version
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files hold the wish alone."""
        return {"is_asked_for": self.is_asked_for}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.is_asked_for = state["is_asked_for"]
