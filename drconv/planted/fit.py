"""A student learns to imitate a teacher."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from drconv.nn.diagnostics import set_progress
from drconv.planted.forms import make_layer
from drconv.planted.measure import compare, explained_variance, linear_fit
from drconv.planted.teacher import CHANNELS, draw_maps, plant, stack

TEST_MAPS = 128
LINEAR = "linear"  # the best linear map, which is solved for and not trained


@dataclass(frozen=True)
class Setting:
    """What all forms have in common.

    Attributes:
        depth: planted layers; more than one make a network with batch norms.
        planted: regions of the teacher.
        regions: of the student, which has to leave empty those it does not need.
        steps: of SGD with momentum 0.9.
        lr: falls linearly to 0.
        batch: maps of a step.
    """

    depth: int = 1
    planted: int = 4
    regions: int = 8
    steps: int = 800
    lr: float = 0.1
    batch: int = 16


def run(form: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Trains one student and measures it; teacher, maps and student follow from the seed alone.

    The loss is the squared error, summed over the channels, averaged over positions and maps.

    Raises:
        ValueError: the form is unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher = plant(setting.planted, setting.depth, generator)
    test = draw_maps(TEST_MAPS, generator)
    if form == LINEAR:
        x = draw_maps(TEST_MAPS, generator)
        with torch.no_grad():
            return {"explained": explained_variance(linear_fit(x, teacher(x), test), teacher(test))}
    torch.manual_seed(seed)
    layers = [make_layer(form, CHANNELS, setting.regions) for _ in range(setting.depth)]
    student = layers[0] if setting.depth == 1 else stack(layers)
    train(student, teacher, setting, generator)
    return compare(student, teacher, test)


def train(student: nn.Module, teacher: nn.Module, setting: Setting, generator: torch.Generator) -> None:
    optimizer = torch.optim.SGD(student.parameters(), setting.lr, momentum=0.9)
    for step in range(setting.steps):
        set_progress(student, step / setting.steps)
        x = draw_maps(setting.batch, generator)
        with torch.no_grad():
            target = teacher(x)
        loss = (student(x) - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * (1 - step / setting.steps)
        optimizer.step()
