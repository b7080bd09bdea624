"""The task of Table 1: cross-entropy with label smoothing and, for recipes that have it, mixup; top-1 and top-5."""

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from drconv.config import Config
from drconv.data import prepare
from drconv.interfaces import Batch, Dataset, Facts, Outputs, Task
from drconv.nn.diagnostics import auxiliary_loss, keep_logits
from drconv.tasks.classification.data import build_dataset
from drconv.tasks.classification.topk import TopK


class Classification(Task[TopK]):
    """Batches hold ``image`` (B, 3, S, S) uint8 RGB, ``label`` (B) and ``valid`` (B)."""

    def __init__(self, network: nn.Module, config: Config, facts: Facts) -> None:
        super().__init__(network, config, facts)
        self.label_smoothing = config.task.classification.label_smoothing
        alpha = config.task.classification.mixup
        self.mixup = v2.MixUp(alpha=alpha, num_classes=facts.num_outputs) if alpha else None
        self.data = config.data
        self.channels_last = config.runtime.channels_last
        options = config.model.drconv
        self.auxiliary = {"balance": options.balance_loss, "z": options.z_loss}
        if any(self.auxiliary.values()):
            keep_logits(network)

    @staticmethod
    def train_set(config: Config) -> Dataset:
        return build_dataset(config.data, "train", config.seed)

    @staticmethod
    def evaluation_sets(config: Config) -> dict[str, Dataset]:
        return {"val": build_dataset(config.data, "val", config.seed)}

    def forward(self, batch: Batch) -> Outputs:
        images, labels = self._inputs(batch)
        targets = labels
        if self.mixup is not None:  # draws from torch's generator, which is seeded for each step and rank
            images, targets = self.mixup(images, labels)
            labels = targets.argmax(1)  # of the picture with the larger share
        logits = self.network(images)
        losses = {
            "cross_entropy": nn.functional.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        }
        if any(self.auxiliary.values()):
            losses["auxiliary"] = auxiliary_loss(self.network, **self.auxiliary)
        scalars = {"top1": 100 * (logits.argmax(1) == labels).float().mean()}
        if self.data.broken != "skip":
            return Outputs(losses, scalars)
        return Outputs(losses, scalars, {"skipped": (~batch["valid"]).sum().to(logits.device)})

    def evaluate(self, batch: Batch, metric: TopK) -> None:
        images, labels = self._inputs(batch)
        valid = batch["valid"].to(labels.device)  # replacements of broken pictures do not count
        metric.update(self.network(images)[valid], labels[valid], (~valid).sum())

    def new_metric(self, device: torch.device, dataset: Dataset) -> TopK:
        return TopK(device, skipping=self.data.broken == "skip")

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = next(self.network.parameters()).device
        batch = prepare(batch, self.data, device, self.channels_last)
        return batch["image"], batch["label"]
