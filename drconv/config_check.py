"""Rules across the keys of the configuration; all broken ones are reported together, before torch is imported."""

import difflib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from drconv.config import Config, TaskConfig
from drconv.errors import ConfigError
from drconv.paths import CONFIGS
from drconv.tasks.registry import TASKS, find_entry

CHOICES: dict[str, tuple[str | None, ...]] = {
    "model.stem": ("auto", "imagenet", "small"),
    "model.conv": ("standard", "drconv", "condconv", "local", "deformable"),
    "model.drconv.generator": ("grouped", "experts"),
    "model.drconv.guide": ("block", "own"),
    "model.drconv.guide_norm": ("none", "scale", "batch"),
    "model.condconv.routing": ("block", "own"),
    "data.name": ("digits", "imagefolder", "imagenet", "generated"),
    "data.augment.crop": ("random_resized", "pad", "none"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.channel_order": ("rgb", "bgr"),
    "data.broken": ("error", "skip"),
    "recipe.optimizer.decay": ("matrices", "all"),
    "recipe.schedule.name": ("linear", "cosine", "multistep", "constant"),
    "runtime.device": ("auto", "cpu", "cuda"),
    "runtime.precision": ("fp32", "bf16", "fp16"),
    "runtime.kernel": (None, "reference", "torch", "cpu", "triton"),
    "logging.wandb": ("auto", "online", "offline", "disabled"),
}
AT_LEAST: dict[str, float] = {
    "seed": 0,
    "model.drconv.regions": 1,
    "model.drconv.experts": 1,
    "model.drconv.groups": 1,
    "model.drconv.guide_stride": 1,
    "model.condconv.experts": 1,
    "data.image_size": 1,
    "recipe.batch_size": 1,
    "recipe.eval_batch_size": 1,
    "recipe.bn_reestimation_steps": 0,
    "recipe.schedule.warmup_steps": 0,
    "recipe.optimizer.lr": 0,
    "recipe.optimizer.weight_decay": 0,
    "recipe.optimizer.momentum": 0,
    "data.augment.crop_padding": 0,
    "runtime.devices": 1,
    "runtime.accumulate": 1,
    "runtime.workers": 0,
    "logging.every": 1,
    "logging.checkpoint_every": 1,
}
LENGTHS = {  # lists of so many numbers
    "data.mean": 3,
    "data.std": 3,
    "data.augment.jitter": 3,
    "data.augment.crop_scale": 2,
    "data.augment.crop_ratio": 2,
}
WIDTHS = {"shufflenetv2": (0.25, 2.0), "mobilefacenet": (1.0, 1.0)}  # that a network can have; others have any
SHARES = ("data.holdout", "task.classification.label_smoothing")
DATA_WITH_ROOT = ("imagefolder", "imagenet")


def validate(config: Config) -> None:
    """Checks all rules.

    Raises:
        ConfigError: with every broken rule, one a line where there are several.
    """
    problems = list(_problems(config))
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} settings do not fit:{lines}")


def steps_of_run(config: Config, num_samples: int) -> int:
    """The length of a run in steps; epochs are converted here and nowhere else."""
    recipe = config.recipe
    if recipe.steps is not None:
        return recipe.steps
    assert recipe.epochs is not None  # validate() demands one of them
    return max(1, round(recipe.epochs * num_samples / recipe.batch_size))


def value_of(config: object, key: str) -> object:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _problems(config: Config) -> Iterator[str]:
    yield from _network(config)
    yield from _single_values(config)
    yield from _optional_values(config)
    yield from _length_and_schedule(config)
    yield from _batch(config)
    yield from _data(config)
    yield from _device(config)
    yield from _task(config)
    yield from _without_effect(config)
    yield from _output_folder(config)


def model_names() -> list[str]:
    """The choices of ``model.name``: those of the files in ``configs/model/``; none where the package is installed
    without them."""
    texts = (path.read_text() for path in (CONFIGS / "model").glob("*.yaml"))
    return sorted({found[1] for text in texts if (found := re.search(r"^name: *(\w+)", text, re.M))})


def _network(config: Config) -> Iterator[str]:
    """Said here and by the network too, which is built only once torch and the data are there."""
    name, width = config.model.name, config.model.width
    names = model_names()
    if names and name not in names:
        near = difflib.get_close_matches(name, names, n=2) or names
        yield f"model.name={name} is not known; did you mean {' or '.join(near)}?"
    least, most = WIDTHS.get(name, (0.01, math.inf))
    if not least <= width <= most:
        yield f"model.width={width} does not fit: {name} takes {least} to {most}"


def _single_values(config: Config) -> Iterator[str]:
    for key, choices in CHOICES.items():
        value = value_of(config, key)
        if value not in choices:
            yield f"{key}={value} is not known; choose {', '.join(str(choice or 'null') for choice in choices)}"
    for key, least in AT_LEAST.items():
        value = value_of(config, key)
        if not isinstance(value, int | float) or not value >= least:
            yield f"{key}={value} must be at least {least}"
    for key in SHARES:
        value = value_of(config, key)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            yield f"{key}={value} must be at least 0 and below 1"

    for key, length in LENGTHS.items():
        numbers = value_of(config, key)
        if not isinstance(numbers, list) or len(numbers) != length:
            yield f"{key}={numbers} must be a list of {length} numbers"


def _optional_values(config: Config) -> Iterator[str]:
    if not 0 <= config.data.augment.flip <= 1:
        yield f"data.augment.flip={config.data.augment.flip} must lie between 0 and 1"
    if not 0 < config.data.fraction <= 1:
        yield f"data.fraction={config.data.fraction} must lie between 0 (excluded) and 1"
    if config.recipe.ema_decay is not None and not 0 < config.recipe.ema_decay < 1:
        yield f"recipe.ema_decay={config.recipe.ema_decay} must lie between 0 and 1; null switches it off"
    if config.recipe.clip_norm is not None and not config.recipe.clip_norm > 0:
        yield f"recipe.clip_norm={config.recipe.clip_norm} must be above 0; null switches it off"
    if config.runtime.threads is not None and config.runtime.threads < 1:
        yield f"runtime.threads={config.runtime.threads} must be at least 1; null shares the cores among the ranks"
    if config.recipe.optimizer.nesterov and not config.recipe.optimizer.momentum > 0:
        yield "recipe.optimizer.nesterov=true needs recipe.optimizer.momentum above 0"
    if config.logging.eval_every is not None and config.logging.eval_every < 1:
        yield f"logging.eval_every={config.logging.eval_every} must be at least 1; null evaluates at the end only"


def _length_and_schedule(config: Config) -> Iterator[str]:
    recipe, schedule = config.recipe, config.recipe.schedule
    if (recipe.steps is None) == (recipe.epochs is None):
        yield f"give either recipe.steps or recipe.epochs; found steps={recipe.steps}, epochs={recipe.epochs}"
    if recipe.steps is not None and recipe.steps < 1:
        yield f"recipe.steps={recipe.steps} must be at least 1"
    if recipe.epochs is not None and not recipe.epochs > 0:
        yield f"recipe.epochs={recipe.epochs} must be above 0"
    if recipe.steps is not None and schedule.warmup_steps >= recipe.steps > 0 and schedule.warmup_steps > 0:
        yield f"recipe.schedule.warmup_steps={schedule.warmup_steps} must be below recipe.steps={recipe.steps}"
    if schedule.name == "multistep" and not schedule.milestones:
        yield "recipe.schedule.name=multistep needs recipe.schedule.milestones, a list of steps"
    if schedule.name != "multistep" and schedule.milestones:
        yield f"recipe.schedule.milestones has no effect under recipe.schedule.name={schedule.name}"
    if schedule.milestones != sorted(schedule.milestones):
        yield f"recipe.schedule.milestones={schedule.milestones} must ascend"


def _batch(config: Config) -> Iterator[str]:
    batch, accumulate = config.recipe.batch_size, config.runtime.accumulate
    ranks = int(os.environ.get("WORLD_SIZE", config.runtime.devices))
    parts = ranks * accumulate
    if parts > 0 and batch % parts:
        nearest = max(1, round(batch / parts)) * parts
        yield (
            f"recipe.batch_size={batch} is the batch of all devices and must be divisible by devices={ranks} x "
            f"runtime.accumulate={accumulate}; use {nearest} or change runtime.devices"
        )


def _data(config: Config) -> Iterator[str]:
    data = config.data
    if data.eval_resize < data.image_size:
        yield f"data.eval_resize={data.eval_resize} must not be below data.image_size={data.image_size}"
    if data.name in DATA_WITH_ROOT and data.root is None:
        yield f"data={data.name} needs data.root, the folder that holds {data.train_split}/ and {data.val_split}/"
    if data.name == "generated" and data.num_classes is None:
        yield "data=generated needs data.num_classes"
    if data.name == "digits" and data.num_classes not in (None, 10):
        yield f"data.num_classes={data.num_classes}, and the embedded digits have 10; leave the key out"
    if config.model.name == "mobilefacenet":
        yield "model=mobilefacenet gives embeddings, and task.name=classification needs classes; choose another model"
    if data.root is not None and not Path(data.root).is_dir():
        yield (
            f"data.root={data.root} is not a folder; expected {data.root}/{data.train_split}/<class>/<picture> and "
            f"{data.root}/{data.val_split}/<class>/<picture>"
        )
    for key in ("weights", "backbone"):
        path = getattr(config, key)
        if path is not None and not Path(path).is_file():
            yield f"{key}={path} is not a file"
    if config.weights is not None and config.backbone is not None:
        yield "give either weights= (the whole network) or backbone= (what fits), not both"


def _device(config: Config) -> Iterator[str]:
    runtime = config.runtime
    if runtime.device == "cpu" and runtime.precision == "fp16":
        yield "runtime.precision=fp16 needs runtime.device=cuda; on a CPU use bf16 or fp32"
    if runtime.device == "cpu" and runtime.sync_bn:
        yield "runtime.sync_bn=true needs runtime.device=cuda"
    if runtime.compile and config.logging.region_usage and config.model.conv == "drconv":
        yield "runtime.compile=true needs logging.region_usage=false: its hooks make it compile again"


def _task(config: Config) -> Iterator[str]:
    try:
        entry = find_entry(config.task)
    except ConfigError as error:
        yield str(error)
        return
    metric = config.experiment.metric
    if metric is not None and entry.full_name(metric) is None:
        known = ", ".join(entry.metrics)
        yield f"experiment.metric={metric} is no metric of task.name={config.task.name}; it computes {known}"
    if config.task.name in TaskConfig.__dataclass_fields__ and config.task.options:
        yield f"task.options are for tasks from outside; those of {config.task.name} lie in task.{config.task.name}"


def _without_effect(config: Config) -> Iterator[str]:
    """Options of a convolution or a task that the run does not use would be ignored in silence."""
    sections = [
        *(("model", section, config.model.conv, "model.conv") for section in ("drconv", "condconv")),
        *(("task", section, config.task.name, "task.name") for section in TASKS if hasattr(config.task, section)),
    ]
    for owner, section, used, key in sections:
        if section == used:
            continue
        options = getattr(getattr(config, owner), section)
        default = type(options)()
        for option in fields(options):
            value = getattr(options, option.name)
            if value != getattr(default, option.name):
                yield f"{owner}.{section}.{option.name}={value} has no effect under {key}={used}"


def _output_folder(config: Config) -> Iterator[str]:
    folder = Path(config.run or config.outputs)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        yield f"{folder} is in the way of the run folder and not a folder; change outputs or run"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"no permission to write below {folder}; change outputs or run"
