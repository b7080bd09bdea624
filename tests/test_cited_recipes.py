"""The recipes of rows that Table 1 quotes: they train, stop and go on as others, and their parts do what they say."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

import train
from drconv.config import AugmentConfig, Config, DataConfig, OptimizerConfig
from drconv.engine.optimizer import build_optimizer
from drconv.engine.trainer import Trainer
from drconv.errors import ConfigError
from drconv.interfaces import Facts
from drconv.tasks.classification import Classification
from drconv.tasks.classification.transforms import TrainTransform

Make = Callable[..., Config]
SHORT = ["recipe.steps=4", "recipe.batch_size=8", "recipe.schedule.interval=2", "logging.checkpoint_every=1"]
SMALL = ["data.num_classes=null", "data.image_size=32", "data.eval_resize=32", "runtime.workers=0"]
BASES = {
    "mobilenetv2": ["model=drconv_mobilenetv2_0.25x", "recipe=mobilenetv2"],
    "condconv": ["model=condconv_mobilenetv1_0.25x", "recipe=condconv", "recipe.schedule.warmup_steps=1"],
}


def pictures(folder: Path) -> Path:
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = noise.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("recipe", "data"), [("mobilenetv2", "imagefolder"), ("condconv", "digits")])
def test_a_cited_recipe_goes_on_bitwise(
    recipe: str, data: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = [f"data.root={pictures(tmp_path / 'pictures')}"] if data == "imagefolder" else []
    base = [*BASES[recipe], f"data={data}", *root, *SMALL, *SHORT, "runtime.threads=1", "logging.wandb=disabled"]
    whole, parts = (make_config(run=name, base=base) for name in ("whole", "parts"))
    train.train(whole)
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == 2:
            raise Killed
        step(self, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    with pytest.raises(Killed):
        train.train(parts)
    monkeypatch.undo()
    train.train(parts)
    for name in ("model.safetensors", "model_ema.safetensors"):
        one, other = (load_file(Path(str(config.run), name)) for config in (whole, parts))
        assert all(torch.equal(one[key], other[key]) for key in one)
    saved = [torch.load(Path(str(c.run), "resume.pt"), weights_only=True)["state"]["optimizer"] for c in (whole, parts)]
    assert {"square_avg", "momentum_buffer"} <= set(saved[0]["state"][0])
    for place, moments in saved[0]["state"].items():
        assert all(torch.equal(moments[k], saved[1]["state"][place][k]) for k in ("square_avg", "momentum_buffer"))


def test_rmsprop_is_tensorflows() -> None:
    """By TensorFlow's formula: ms = 0.9 ms + 0.1 g^2 from 1, mom = 0.9 mom + lr g / sqrt(ms + eps), w = w - mom."""
    module = nn.Linear(3, 1, bias=False).double()
    weight = module.weight.detach().clone()
    options = OptimizerConfig(name="rmsprop", lr=0.5, momentum=0.9, eps=0.25, weight_decay=0.125)
    optimizer = build_optimizer(module, options)
    mean_square, moment = torch.ones_like(weight), torch.zeros_like(weight)
    for rate in (0.5, 0.25, 0.125):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        (module.weight**3).sum().backward()
        optimizer.step()
        gradient = 3 * weight**2 + 0.125 * weight
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        moment = 0.9 * moment + rate * gradient / (mean_square + 0.25).sqrt()
        weight = weight - moment
        assert torch.allclose(module.weight, weight, rtol=1e-12)


def test_autoaugment_is_torchvisions_and_leaves_the_generator_alone() -> None:
    config = DataConfig(
        name="generated", image_size=32, eval_resize=32, augment=AugmentConfig(crop="none", flip=0, autoaugment=True)
    )
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    transform, state = TrainTransform(config), torch.get_rng_state()
    found = [transform.augment(image, Random(seed)) for seed in range(6)]
    assert torch.equal(torch.get_rng_state(), state)
    for seed in range(6):
        torch.manual_seed(Random(seed).getrandbits(63))
        assert torch.equal(found[seed], v2.AutoAugment(fill=128)(image))
    assert sum(not torch.equal(each, image) for each in found) >= 3


def test_mixup_is_a_loss_between_two_labels(make_config: Make) -> None:
    """Linear: with mixed pictures and labels the loss of a linear network is that of the mixed picture, by hand."""
    config = make_config("task.classification.mixup=1.0", "task.classification.label_smoothing=0")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 3))
    task = Classification(network, config, Facts(3, (2, 2), ["a", "b", "c"]))
    images = torch.randint(0, 256, (2, 3, 2, 2), dtype=torch.uint8)
    batch = {"image": images, "label": torch.tensor([0, 2]), "valid": torch.ones(2, dtype=torch.bool)}
    torch.manual_seed(7)
    loss = task(batch).loss.detach()
    torch.manual_seed(7)
    share = float(torch.distributions.Beta(torch.tensor([1.0]), torch.tensor([1.0])).sample())
    inputs, _ = task._inputs(batch)
    logs = network(share * inputs + (1 - share) * inputs.flip(0)).log_softmax(1)
    expected = -(share * (logs[0, 0] + logs[1, 2]) + (1 - share) * (logs[0, 2] + logs[1, 0])) / 2
    assert 0.01 < share < 0.99
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.schedule.name=exponential"], "needs a number of steps"),
        (["recipe.schedule.interval=5"], "recipe.schedule.interval=5 does not fit"),
        (["recipe.optimizer.name=rmsprop", "recipe.optimizer.nesterov=true"], "nesterov=true has no effect"),
        (["model=mobilefacenet", "data=generated_faces", "data.augment.autoaugment=true"], "autoaugment=true has no"),
        (["recipe.epochs=2"], "for so many steps add recipe.epochs=null"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], message: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("recipe.steps=3", *overrides)
