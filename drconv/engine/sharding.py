"""Parameters of which every rank holds its own rows: whole in checkpoints, cut on load, counted once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from drconv import distributed
from drconv.errors import TaskError
from drconv.interfaces import Task

Change = Callable[[Tensor], Tensor]


class Sharding:
    """The sharded parameters of a task; every method is collective and leaves tasks without any as they are."""

    def __init__(self, task: Task[Any], optimizer: torch.optim.Optimizer) -> None:
        self.names = sorted(task.sharded_parameters())
        named = dict(task.named_parameters())
        if unknown := [name for name in self.names if name not in named]:
            raise TaskError(f"sharded_parameters() of the task names {unknown[0]}, which is no parameter of it")
        self.parameters = [named[name] for name in self.names]
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sharded = {id(parameter) for parameter in self.parameters}
        # An optimiser's state names its parameters by their place.
        self._places = [place for place, parameter in enumerate(ordered) if id(parameter) in sharded]
        self._is_split = bool(self.names) and distributed.world_size() > 1

    def whole_weights(self, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """A ``state_dict`` with the rows of all ranks."""
        return self._change_weights(state, prefix, distributed.all_gather_rows)

    def own_weights(self, state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """A whole ``state_dict`` with this rank's rows."""
        return self._change_weights(state, prefix, distributed.own_rows)

    def whole_moments(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimiser's ``state_dict`` with the rows of all ranks."""
        return self._change_moments(state, distributed.all_gather_rows)

    def own_moments(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimiser's whole ``state_dict`` with this rank's rows."""
        return self._change_moments(state, distributed.own_rows)

    def clip_gradients(self, module: nn.Module, max_norm: float) -> Tensor:
        """Scales the gradients to a norm of at most ``max_norm`` over the parameters of all ranks; returns the norm."""
        if not self._is_split:
            return nn.utils.clip_grad_norm_(module.parameters(), max_norm)
        sharded = {id(parameter) for parameter in self.parameters}
        shared = [p for p in module.parameters() if id(p) not in sharded]
        own = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        common = nn.utils.get_total_norm([p.grad for p in shared if p.grad is not None])
        norm = (common.square() + distributed.all_reduce(own.square())).sqrt()
        nn.utils.clip_grads_with_norm_([*shared, *self.parameters], max_norm, norm)
        return norm

    def share_overflow(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """Makes an overflow that one rank saw in its rows known to all, so that all skip the step."""
        if not self._is_split or not scaler.is_enabled():
            return
        # The scaler has no public place for this: its flags, by device, filled by unscale_().
        for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            distributed.all_reduce(found, "max")

    def _change_weights(self, state: dict[str, Tensor], prefix: str, change: Change) -> dict[str, Tensor]:
        if not self._is_split:
            return state
        return state | {key: change(state[key]) for key in (f"{prefix}{name}" for name in self.names)}

    def _change_moments(self, state: dict[str, Any], change: Change) -> dict[str, Any]:
        if not self._is_split:
            return state
        moments = dict(state["state"])
        for place in self._places:
            if place in moments:  # absent before the first step
                own = moments[place]
                moments[place] = {k: change(v) if isinstance(v, Tensor) and v.ndim else v for k, v in own.items()}
        return {**state, "state": moments}
