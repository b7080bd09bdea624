r"""A task of your own: how bright is a picture? Regression on made-up pictures, with one option.

    PYTHONPATH=examples/own_task python train.py model=shufflenetv2_0.25x task.name=brightness task.module=brightness \
        task.classification.label_smoothing=0 recipe.optimizer.lr=0.01
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from drconv.config import Config
from drconv.data import to_device
from drconv.distributed import all_reduce
from drconv.errors import ConfigError
from drconv.interfaces import Batch, Dataset, Facts, Fingerprint, Outputs, Sample, SampleKey, Task
from drconv.tasks import Headline, TaskEntry, register_task

register_task(
    "brightness",
    TaskEntry("brightness", "Brightness", Headline("val/error", "mean absolute error", ""), ("val/error",)),
)


@dataclass(frozen=True)
class Greys:
    """Noise around a grey level, which is to be found."""

    length: int
    noise: float

    @property
    def facts(self) -> Facts:
        return Facts(num_outputs=1, input_size=(32, 32))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey) -> Sample:
        index, seed = key
        level = (index * 7 % self.length) / self.length
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed))
        return {"image": level + self.noise * noise, "level": torch.tensor([level])}

    def collate(self, samples: list[Sample]) -> Batch:
        return default_collate(samples)

    def describe(self) -> str:
        return f"{self.length} grey pictures"

    def fingerprint(self) -> Fingerprint:
        return {"pictures": self.length, "noise": self.noise}


class MeanError:
    """Mean absolute error over all ranks."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # errors, pictures

    def update(self, errors: Tensor) -> None:
        self.sums += torch.stack([errors.double().sum(), errors.new_tensor(len(errors)).double()])

    def compute(self) -> dict[str, float]:
        errors, pictures = all_reduce(self.sums.clone()).tolist()
        return {"error": errors / pictures}


class Brightness(Task[MeanError]):
    @staticmethod
    def train_set(config: Config) -> Dataset:
        return Greys(256, _noise(config))

    @staticmethod
    def evaluation_sets(config: Config) -> dict[str, Dataset]:
        return {"val": Greys(64, _noise(config))}

    def forward(self, batch: Batch) -> Outputs:
        predicted, level = self._predict(batch)
        return Outputs({"squared_error": nn.functional.mse_loss(predicted, level)})

    def new_metric(self, device: torch.device, dataset: Dataset) -> MeanError:
        return MeanError(device)

    def evaluate(self, batch: Batch, metric: MeanError) -> None:
        predicted, level = self._predict(batch)
        metric.update((predicted - level).abs().flatten())

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        batch = to_device(batch, next(self.network.parameters()).device)
        return self.network(batch["image"]).float(), batch["level"]


def _noise(config: Config) -> float:
    """The task's one option; a task from outside checks its own."""
    options = dict(config.task.options or {})
    noise = options.pop("noise", 0.1)
    if options or not isinstance(noise, float | int):
        raise ConfigError(f"task.options={config.task.options} does not fit: brightness takes noise, a number")
    return float(noise)
