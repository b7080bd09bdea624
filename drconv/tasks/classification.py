"""Image classification: cross-entropy with label smoothing, top-1 and top-5."""

from typing import Any

import torch
from torch import Tensor, nn

from drconv.config import Config
from drconv.data import prepare
from drconv.metrics.topk import TopK
from drconv.nn.diagnostics import auxiliary_loss, keep_logits


class Classification(nn.Module):
    """Batches hold ``image`` (B, 3, S, S) uint8 and ``label`` (B)."""

    headline = "top1"

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing = config.recipe.label_smoothing
        self.data = config.data
        self.channels_last = config.runtime.channels_last
        options = config.model.drconv
        self.auxiliary = {"balance": options.balance_loss, "z": options.z_loss}
        if any(self.auxiliary.values()):
            keep_logits(network)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        images, labels = self._inputs(batch)
        logits = self.network(images)
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        logged = {"loss": loss, "top1": 100 * (logits.argmax(1) == labels).float().mean()}
        if self.data.broken == "skip":
            logged["skipped"] = (~batch["valid"]).float().sum().to(loss.device)
        if any(self.auxiliary.values()):
            auxiliary = auxiliary_loss(self.network, **self.auxiliary)
            logged |= {"loss": loss + auxiliary, "auxiliary": auxiliary}
        return logged

    def evaluate(self, batch: dict[str, Any], metric: TopK) -> None:
        images, labels = self._inputs(batch)
        valid = batch["valid"].to(labels.device)  # replacements of broken pictures do not count
        metric.update(self.network(images)[valid], labels[valid], (~valid).sum())

    def new_metric(self, device: torch.device) -> TopK:
        return TopK(device, skipping=self.data.broken == "skip")

    def _inputs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        device = next(self.network.parameters()).device
        batch = prepare(batch, self.data, device, self.channels_last)
        return batch["image"], batch["label"]
