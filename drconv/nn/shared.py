"""A sequence of layers that share one module's output: a guide's logits (D2), or CondConv's routing weights."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from drconv.nn.plain import is_transparent


class SharedSequential(nn.Sequential):
    """A sequence with a head that is computed once on its input, for all layers that take what it gives.

    The keys of the wrapped sequence's state dict stay; the head's are added under its name. What it gives reaches the
    layers in nested plain ``nn.Sequential`` too; these are gone through, not called, so that hooks on them rest.

    Args:
        modules: the sequence; its modules are taken over, names included.
        head: the module whose output is shared.

    Attributes:
        name: the head's attribute; a layer takes its output where ``takes_<name>`` is true.
    """

    name: str

    def __init__(self, modules: nn.Sequential, head: nn.Module) -> None:
        super().__init__(OrderedDict(modules.named_children()))
        self.add_module(self.name, head.train(modules.training))
        self.training = modules.training

    def __len__(self) -> int:
        """The number of wrapped modules, so that indices mean what they meant before."""
        return len(self._modules) - 1

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for name, module in self._modules.items() if name != self.name)  # type: ignore[misc]

    def __getitem__(self, index: int | slice) -> Any:
        """A module, or a plain sequence of some of them, whose layers take the shared input no more."""
        chosen = list(self)[index]
        return chosen if isinstance(index, int) else nn.Sequential(*chosen)  # type: ignore[misc]

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input, self.get_submodule(self.name)(input))

    def _run(self, x: Tensor, shared_input: Tensor) -> Tensor:
        return _run(self, x, shared_input, f"takes_{self.name}")


def _run(modules: nn.Sequential, x: Tensor, shared: Tensor, takes: str) -> Tensor:
    for module in modules:
        if getattr(module, takes, False):
            x = module(x, shared)
        elif is_transparent(module):
            x = _run(module, x, shared, takes)  # type: ignore[arg-type]
        else:
            x = module(x)
    return x
