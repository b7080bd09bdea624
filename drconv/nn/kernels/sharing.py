"""Logits that several layers take: who hands them out vouches that nobody changes them meanwhile.

A kernel may then keep what it has made of them, such as the pixels in the order of their regions. It could not tell by
itself: a tensor's version does not count writes through ``.data``, by other libraries or by a replayed CUDA graph.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_of_thread = threading.local()


@contextmanager
def shared(logits: Tensor) -> Iterator[None]:
    """Inside, what kernels make of these very logits is kept for the next layer."""
    before = getattr(_of_thread, "kept", None)
    _of_thread.kept = (logits, {})
    try:
        yield
    finally:
        _of_thread.kept = before


def kept_for(logits: Tensor) -> dict[Any, Any] | None:
    """Where to keep what was made of the logits, or None where nobody vouches for them."""
    kept = getattr(_of_thread, "kept", None)
    return kept[1] if kept is not None and kept[0] is logits else None
