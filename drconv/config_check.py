"""Rules across the keys of the configuration; all broken ones are reported together, before torch is imported."""

import difflib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from drconv.config import Config, FacesConfig, ScheduleConfig, TaskConfig
from drconv.config_detection import SECTIONS, detection_problems
from drconv.config_ranges import range_problems
from drconv.errors import ConfigError
from drconv.paths import CONFIGS
from drconv.tasks.registry import TASKS, find_entry
from drconv.world import num_ranks

CHOICES: dict[str, tuple[str | None, ...]] = {
    "model.stem": ("auto", "imagenet", "small"),
    "model.conv": ("standard", "drconv", "condconv", "local", "deformable"),
    "model.drconv.generator": ("grouped", "experts"),
    "model.drconv.guide": ("block", "own"),
    "model.drconv.guide_norm": ("none", "scale", "batch"),
    "model.condconv.routing": ("block", "own"),
    "model.detector.norm": ("batch", "frozen"),
    "data.name": (
        *("digits", "imagefolder", "imagenet", "generated", "generated_faces", "face_folders", "ms1mv2"),
        *("coco", "scenes"),
    ),
    "data.coco.layout": ("2017", "2014"),
    "data.augment.crop": ("random_resized", "pad", "none"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.channel_order": ("rgb", "bgr"),
    "data.broken": ("error", "skip"),
    "task.identification.margin_loss": ("am_softmax", "cosface", "arcface"),
    "recipe.optimizer.name": ("sgd", "rmsprop"),
    "recipe.optimizer.decay": ("matrices", "all"),
    "recipe.schedule.name": ("linear", "cosine", "multistep", "exponential", "constant"),
    "runtime.device": ("auto", "cpu", "cuda"),
    "runtime.precision": ("fp32", "bf16", "fp16"),
    "runtime.kernel": (None, "reference", "torch", "cpu", "triton"),
    "logging.wandb": ("auto", "online", "offline", "disabled"),
}
LENGTHS = {  # lists of so many numbers
    "data.mean": 3,
    "data.std": 3,
    "data.augment.jitter": 3,
    "data.augment.crop_scale": 2,
    "data.augment.crop_ratio": 2,
}
WIDTHS = {  # that a network can have; others have any
    "shufflenetv2": (0.25, 2.0),
    "mobilefacenet": (1.0, 1.0),
    "detnas_300m": (1.0, 1.0),
}
DATA_WITH_ROOT = ("imagefolder", "imagenet", "face_folders", "ms1mv2", "coco")
FACES = ("generated_faces", "face_folders", "ms1mv2")


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


def length_problems(config: Config, num_steps: int) -> Iterator[str]:
    """What cannot be meant for a run of so many steps; asked again when the data have told the length of epochs."""
    warmup = config.recipe.schedule.warmup_steps
    if warmup >= num_steps > 0 and warmup > 0:
        length = f"recipe.steps={num_steps}" if config.recipe.steps is not None else f"the run's {num_steps} steps"
        yield f"recipe.schedule.warmup_steps={warmup} must be below {length}, or no step has the full learning rate"


def length_warnings(config: Config, num_steps: int) -> Iterator[str]:
    """What a user should know of a run of so many steps."""
    late = [step for step in config.recipe.schedule.milestones if step >= num_steps]
    if late:
        yield f"recipe.schedule.milestones={late} lie at or behind the run's end of {num_steps} steps: no drop there"


def value_of(config: object, key: str) -> object:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _problems(config: Config) -> Iterator[str]:
    yield from _network(config)
    yield from _single_values(config)
    yield from _length_and_schedule(config)
    yield from _batch(config)
    yield from _data(config)
    yield from _faces(config)
    yield from _device(config)
    yield from _task(config)
    yield from _without_effect(config)
    yield from _experiment(config)
    yield from _output_folder(config)


def model_names() -> list[str]:
    """The choices of ``model.name``: those of the files in ``configs/model/``; none where the package is installed
    without them."""
    texts = (path.read_text() for path in (CONFIGS / "model").glob("*.yaml"))
    return sorted({found[1] for text in texts if (found := re.search(r"^ *name: *(\w+)", text, re.M))})


def is_experiment(name: str) -> bool:
    """Whether ``configs/experiment/`` has a file of this name."""
    return (CONFIGS / "experiment" / f"{name}.yaml").is_file()


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
    yield from range_problems(config)
    for key, length in LENGTHS.items():
        numbers = value_of(config, key)
        if not isinstance(numbers, list) or len(numbers) != length:
            yield f"{key}={numbers} must be a list of {length} numbers"


def _length_and_schedule(config: Config) -> Iterator[str]:
    recipe, schedule = config.recipe, config.recipe.schedule
    if (recipe.steps is None) == (recipe.epochs is None):
        hint = (
            "" if recipe.steps is None else "; for so many steps add recipe.epochs=null, for epochs recipe.steps=null"
        )
        found = f"steps={recipe.steps}, epochs={recipe.epochs}"
        yield f"give either recipe.steps or recipe.epochs; found {found}{hint}"
    if recipe.steps is not None:
        yield from length_problems(config, recipe.steps)
    if recipe.optimizer.nesterov and not recipe.optimizer.momentum > 0:
        yield "recipe.optimizer.nesterov=true needs recipe.optimizer.momentum above 0"
    if recipe.optimizer.nesterov and recipe.optimizer.name != "sgd":
        yield f"recipe.optimizer.nesterov=true has no effect under recipe.optimizer.name={recipe.optimizer.name}"
    yield from _schedule(schedule)


def _schedule(schedule: ScheduleConfig) -> Iterator[str]:
    if (schedule.name == "exponential") != (schedule.interval is not None):
        yield (
            f"recipe.schedule.interval={schedule.interval} does not fit recipe.schedule.name={schedule.name}: "
            f"exponential needs a number of steps, the others null"
        )
    if schedule.name == "multistep" and not schedule.milestones:
        yield "recipe.schedule.name=multistep needs recipe.schedule.milestones, a list of steps"
    if schedule.name != "multistep" and schedule.milestones:
        yield f"recipe.schedule.milestones has no effect under recipe.schedule.name={schedule.name}"
    if schedule.milestones != sorted(schedule.milestones):
        yield f"recipe.schedule.milestones={schedule.milestones} must ascend"


def _batch(config: Config) -> Iterator[str]:
    batch, accumulate = config.recipe.batch_size, config.runtime.accumulate
    ranks = num_ranks(config)
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
    if data.root is not None and not Path(data.root).is_dir() and data.name in FACES:
        yield f"data.root={data.root} is not a folder"
    elif data.root is not None and not Path(data.root).is_dir():
        yield (
            f"data.root={data.root} is not a folder; expected {data.root}/{data.train_split}/<class>/<picture> and "
            f"{data.root}/{data.val_split}/<class>/<picture>"
        )
    yield from detection_problems(config)
    for key in ("weights", "backbone"):
        path = getattr(config, key)
        if path is not None and not Path(path).is_file():
            yield f"{key}={path} is not a file"
    if config.weights is not None and config.backbone is not None:
        yield "give either weights= (the whole network) or backbone= (what fits), not both"


def _faces(config: Config) -> Iterator[str]:
    data = config.data
    if config.model.name == "mobilefacenet" and config.task.name == "classification":
        yield "model=mobilefacenet gives embeddings, and task.name=classification needs classes; choose another model"
    if (data.name in FACES) != (config.task.name == "identification") and config.task.name in TASKS:
        yield f"data={data.name} does not fit task.name={config.task.name}; faces are {', '.join(FACES)}"
    if data.name not in FACES and data.faces != FacesConfig():
        yield f"data.faces has no effect under data.name={data.name}"
    if data.faces.window is not None and (len(data.faces.window) != 2 or min(data.faces.window) < 1):
        yield f"data.faces.window={data.faces.window} must be two numbers of pixels, rows and columns"
    if data.faces.probes is not None and data.faces.held_out:
        yield "give either data.faces.probes (a folder) or data.faces.held_out (a share of the training identities)"


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
        yield f"experiment.metric={metric} is no metric of task.name={config.task.name}, which has {known}"
    if config.data.augment.autoaugment and config.task.name in set(TASKS) - {"classification"}:
        yield f"data.augment.autoaugment=true has no effect under task.name={config.task.name}"
    if config.task.name in TaskConfig.__dataclass_fields__ and config.task.options:
        yield f"task.options are for tasks from outside; those of {config.task.name} lie in task.{config.task.name}"


def _experiment(config: Config) -> Iterator[str]:
    """The id names the run's folder, below ``outputs``."""
    id = config.experiment.id
    if id is not None and (set(id.split("/")) & {"", ".", ".."} or not id.isprintable() or "\\" in id):
        yield f"experiment.id={id!r} has to be a name such as table1/my_network, without an empty part, . or .. in it"


def _without_effect(config: Config) -> Iterator[str]:
    """Options of a convolution or a task that the run does not use would be ignored in silence."""
    layers = config.model.layers
    if layers == []:
        yield "model.layers=[] replaces no layer; for the plain network choose model.conv=standard"
    elif layers is not None and config.model.conv == "standard":
        yield f"model.layers={layers} has no effect under model.conv=standard"
    sections = [
        *(("model", section, config.model.conv, "model.conv") for section in ("drconv", "condconv")),
        *(("task", section, config.task.name, "task.name") for section in TASKS if hasattr(config.task, section)),
    ]
    if config.task.name != "detection":
        sections += [(owner, section, config.task.name, "task.name") for owner, section in SECTIONS]
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
    for key in ("run", "outputs"):
        if value_of(config, key) == "":
            yield f"{key}= is empty; give a folder or leave the key out"
            return
    folder = Path(config.run or config.outputs)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        yield f"{folder} is in the way of the run folder and not a folder; change outputs or run"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"no permission to write below {folder}; change outputs or run"
