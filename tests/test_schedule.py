"""Schedules against torch's own schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from drconv.config import ScheduleConfig
from drconv.engine.schedule import lr_factor

STEPS = 50


def torch_factors(make: type, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer, **options)
    factors = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        (ScheduleConfig("linear"), (lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 1.0 - step / STEPS})),
        (ScheduleConfig("cosine"), (lr_scheduler.CosineAnnealingLR, {"T_max": STEPS})),
        (ScheduleConfig("multistep", [10, 30], 0.1), (lr_scheduler.MultiStepLR, {"milestones": [10, 30]})),
        (ScheduleConfig("exponential", gamma=0.9, interval=7), (lr_scheduler.StepLR, {"step_size": 7, "gamma": 0.9})),
        (
            ScheduleConfig("constant", warmup_steps=20, warmup_factor=1 / 3),
            (lr_scheduler.LinearLR, {"start_factor": 1 / 3, "total_iters": 20}),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ScheduleConfig) else "",
)
def test_equals_torch(schedule: ScheduleConfig, reference: tuple[type, dict]) -> None:
    ours = [lr_factor(step, STEPS, schedule) for step in range(STEPS)]
    assert ours == pytest.approx(torch_factors(reference[0], **reference[1]), abs=1e-12)


def test_warm_up_multiplies_without_shifting() -> None:
    schedule = ScheduleConfig("linear", warmup_steps=10, warmup_factor=0.5)
    assert lr_factor(0, STEPS, schedule) == 0.5
    assert lr_factor(5, STEPS, schedule) == pytest.approx(0.75 * (1 - 5 / STEPS))
    assert lr_factor(20, STEPS, schedule) == pytest.approx(1 - 20 / STEPS)
