"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to drift after a resume."""

import math
from bisect import bisect_right

from drconv.config import ScheduleConfig


def lr_factor(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """The factor on the base rate for step 0 .. num_steps - 1.

    ``linear`` is ``1 - step / num_steps``, the ShuffleNet authors' rule; ``cosine`` half a cosine to 0; ``multistep``
    multiplies by gamma at each milestone, ``exponential`` after each ``interval`` (TensorFlow's staircase). A linear
    warm-up multiplies the first ``warmup_steps`` steps; the schedule itself is not shifted, as in the recipes of
    detection and identification, whose milestones count from step 0.
    """
    return _decay(step, num_steps, schedule) * _warmup(step, schedule)


def _decay(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    if schedule.name == "linear":
        return 1 - step / num_steps
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / num_steps))
    if schedule.name == "multistep":
        return schedule.gamma ** bisect_right(schedule.milestones, step)
    if schedule.name == "exponential":
        assert schedule.interval is not None  # validate() demands it
        return schedule.gamma ** (step // schedule.interval)
    if schedule.name == "constant":
        return 1.0
    raise ValueError(f"recipe.schedule.name={schedule.name} is not known")


def _warmup(step: int, schedule: ScheduleConfig) -> float:
    if step >= schedule.warmup_steps:
        return 1.0
    return schedule.warmup_factor + (1 - schedule.warmup_factor) * step / schedule.warmup_steps
