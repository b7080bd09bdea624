"""Function transforms: forward-mode derivatives, and ``vmap``, ``grad`` and the like of ``torch.func``.

Only ``reference`` consists of operations that have rules for them.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform is at work on what is computed now, in a compiled function too."""
    return _ask_while_tracing() if torch.compiler.is_compiling() else _ask()


def _ask() -> bool:
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


@torch.compiler.assume_constant_result
def _ask_while_tracing() -> bool:
    return _ask()  # the compiler enters a transform that it traces


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Stop an operator that would drop the tangents of forward-mode derivatives.

    Raises:
        NotImplementedError: one of the tensors has a tangent.
    """
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError(
                    'this kernel of DRConv has no forward-mode derivative; use kernel="reference" for it'
                )
