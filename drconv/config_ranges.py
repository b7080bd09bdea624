"""The range of every number of the configuration, checked once. Imports no torch.

Upper ends are far above what anybody has used and below what ends a machine: a slip of the finger is a message.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from drconv.config import Config

# [ and ] are within the range, ( and ) are not. Optional numbers may be null besides. Of lists, every number.
RANGES: dict[str, str] = {
    "seed": "[0, 9223372036854775807]",
    "model.width": "[0.01, 16]",
    "model.dropout": "[0, 1)",
    "model.drconv.regions": "[1, 256]",
    "model.drconv.hidden": "[1, 4096]",
    "model.drconv.experts": "[1, 256]",
    "model.drconv.groups": "[1, 1024]",
    "model.drconv.init_noise": "[0, 1000]",
    "model.drconv.init_gain": "(0, 1000]",
    "model.drconv.filter_sharing": "[0, 1]",
    "model.drconv.filter_sharing_end": "[0, 1]",
    "model.drconv.generator_gradient": "[0, 1000]",
    "model.drconv.guide_stride": "[1, 1024]",
    "model.drconv.guide_gradient": "[0, 1000]",
    "model.drconv.feature_gradient": "[0, 1000]",
    "model.drconv.balance_loss": "[0, 1000]",
    "model.drconv.z_loss": "[0, 1000]",
    "model.drconv.soft_until": "[0, 1]",
    "model.drconv.error_loss": "[0, 1000]",
    "model.drconv.error_damping": "[0, 1]",
    "model.condconv.experts": "[1, 256]",
    "model.detector.frozen_stages": "[0, 5]",
    "model.detector.rois": "[1, 100000]",
    "data.num_classes": "[1, 10000000]",
    "data.image_size": "[1, 4096]",
    "data.eval_resize": "[1, 8192]",
    "data.num_generated": "[1, 100000000]",
    "data.max_pixels": "[1, 178956970]",  # above, Pillow itself refuses a picture
    "data.holdout": "[0, 1)",
    "data.fraction": "(0, 1]",
    "data.mean": "[-1000000, 1000000]",
    "data.std": "(0, 1000000]",
    "data.augment.crop_scale": "(0, 1]",
    "data.augment.crop_ratio": "[0.01, 100]",
    "data.augment.crop_padding": "[0, 4096]",
    "data.augment.flip": "[0, 1]",
    "data.augment.jitter": "[0, 10]",
    "data.augment.rotate": "[0, 180]",
    "data.coco.sizes": "[1, 8192]",
    "data.coco.max_size": "[1, 16384]",
    "data.faces.held_out": "[0, 1)",
    "data.faces.window": "[1, 4096]",
    "data.faces.identities": "[8, 1000000]",
    "data.faces.each": "[2, 100000]",
    "task.classification.label_smoothing": "[0, 1)",
    "task.classification.mixup": "[0, 100]",
    "task.identification.scale": "(0, 1000]",
    "task.identification.margin": "[0, 3.1415]",
    "recipe.steps": "[1, 1000000000]",
    "recipe.epochs": "(0, 1000000]",
    "recipe.batch_size": "[1, 1000000]",
    "recipe.eval_batch_size": "[1, 100000]",
    "recipe.bn_reestimation_steps": "[0, 1000000]",
    "recipe.clip_norm": "(0, 1000000000]",
    "recipe.ema_decay": "(0, 1)",
    "recipe.optimizer.lr": "[0, 1000000]",
    "recipe.optimizer.momentum": "[0, 1)",
    "recipe.optimizer.eps": "(0, 1000]",
    "recipe.optimizer.weight_decay": "[0, 1000]",
    "recipe.optimizer.guide_lr": "[0, 1000]",
    "recipe.optimizer.guide_weight_decay": "[0, 1000]",
    "recipe.optimizer.groups.lr": "[0, 1000]",
    "recipe.optimizer.groups.weight_decay": "[0, 1000]",
    "recipe.schedule.milestones": "[1, 1000000000]",
    "recipe.schedule.gamma": "[0, 1]",
    "recipe.schedule.interval": "[1, 1000000000]",
    "recipe.schedule.warmup_steps": "[0, 1000000000]",
    "recipe.schedule.warmup_factor": "[0, 1]",
    "runtime.devices": "[1, 1024]",
    "runtime.accumulate": "[1, 100000]",
    "runtime.workers": "[0, 256]",
    "runtime.threads": "[1, 1024]",
    "runtime.timeout": "[1, 1000000]",
    "logging.every": "[1, 1000000000]",
    "logging.eval_every": "[1, 1000000000]",
    "logging.checkpoint_every": "[1, 1000000000]",
    "experiment.tolerance": "[0, 1000000000]",
}
PAIRS = ("data.augment.crop_scale", "data.augment.crop_ratio")  # a lower and an upper end


def range_problems(config: Config) -> Iterator[str]:
    """One line for each number outside its range; infinity and NaN are outside any."""
    for key, text in RANGES.items():
        for value in _values(config, key.split(".")):
            numbers = value if isinstance(value, list) else [value]
            if not all(is_within(number, text) for number in numbers):
                yield f"{key}={value} {'has a number that ' if numbers is value else ''}{_words(text)}"
            elif key in PAIRS and numbers != sorted(numbers):
                yield f"{key}={value} must ascend"


def is_within(value: object, text: str) -> bool:
    """Whether a number lies in a range such as ``(0, 1]``; NaN lies in none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = _ends(text)
    above = value >= low if text[0] == "[" else value > low
    return above and (value <= high if text[-1] == "]" else value < high)


def numeric_keys(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all numbers and lists of numbers in the schema, those of listed sections included."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        kinds = _kinds(hints[item.name])
        if kinds & {int, float}:
            yield prefix + item.name
        for kind in kinds:
            if isinstance(kind, type) and is_dataclass(kind):
                yield from numeric_keys(kind, f"{prefix}{item.name}.")


def _kinds(hint: Any) -> set[Any]:
    """The types in a hint, those inside of unions and lists too."""
    return {hint, *(kind for part in get_args(hint) for kind in _kinds(part))}


def _values(owner: Any, parts: list[str]) -> Iterator[Any]:
    """The values at a dotted key; several where it leads through a list of sections."""
    if isinstance(owner, list):
        for item in owner:
            yield from _values(item, parts)
    elif not parts:
        yield owner
    elif (value := getattr(owner, parts[0], None)) is not None:  # a key of a task that is not there yet
        if len(parts) == 1:
            yield value
        else:
            yield from _values(value, parts[1:])


def _ends(text: str) -> tuple[float, float]:
    low, high = (int(end) if end.strip("- ").isdecimal() else float(end) for end in text[1:-1].split(","))
    return low, high


def _words(text: str) -> str:
    low, high = text[1:-1].split(", ")
    above, below = ("at least" if text[0] == "[" else "above"), ("at most" if text[-1] == "]" else "below")
    return f"must be {above} {low} and {below} {high}"
