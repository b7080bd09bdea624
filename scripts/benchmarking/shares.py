"""The share of a plain training step that the convolutions take which DRConv replaces, and the floor it sets.

A DRConv's step costs m + 2 products where a convolution's costs 3: one forward, one for the filters, and for guide and
input one for each of the m regions. With share f of the step, the least ratio to the plain step is
1 + f ((m + 2) / 3 - 1).
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from scripts.benchmarking.sides import build, image, training_step

MARK, STEP = "replaced convolution", "training step"
BACKWARD = "autograd::engine::evaluate_function: ConvolutionBackward0"


def floor_of_step(share: float, regions: int = 8) -> float:
    """The least ratio of DRConv's training step to the plain one."""
    return 1 + share * ((regions + 2) / 3 - 1)


def shares_of_step(network: str, device: str, batch: int = 32, steps: int = 5) -> list[float]:
    """Share of each profiled step that passes in the replaced convolutions, forward and backward."""
    model = build(network, "plain", device)
    mark_replaced(model)
    step = training_step(model, "plain", image(network, batch, 224, device))
    step()
    shares = []
    for _ in range(steps):
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
        with profile(activities=activities) as profiler:
            with record_function(STEP):
                step()
            if device == "cuda":
                torch.cuda.synchronize()
        shares.append(share_of(list(profiler.events()), device))
    return shares


def mark_replaced(model: nn.Module) -> None:
    """Make the forward pass of each convolution that DRConv would replace visible to the profiler."""
    for name in model.replaceable_layers:  # type: ignore[union-attr]
        layer = model.get_submodule(name)

        def forward(x: torch.Tensor, inner: Any = layer.forward) -> torch.Tensor:
            with record_function(MARK):
                return inner(x)

        layer.forward = forward  # type: ignore[method-assign]


def share_of(events: list[Any], device: str) -> float:
    """The marked convolutions' time over the step's; a backward belongs to the forward with its sequence number."""
    column = "cpu_time_total" if device == "cpu" else "device_time_total"
    marked = [event for event in events if event.name == MARK and str(event.device_type).endswith("CPU")]
    numbers = {child.sequence_nr for event in marked for child in event.cpu_children if child.sequence_nr >= 0}
    backward = [event for event in events if event.name == BACKWARD and event.sequence_nr in numbers]
    assert len(marked) == len(numbers) == len(backward), (len(marked), len(numbers), len(backward))
    spent = sum(getattr(event, column) for event in marked + backward)
    if device == "cpu":
        return spent / next(event.cpu_time_total for event in events if event.name == STEP)
    return spent / sum(event.self_device_time_total for event in events if str(event.device_type).endswith("CPU"))
