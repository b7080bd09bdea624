"""Top-1 and top-5 accuracy and the mean cross-entropy of a classifier."""

import torch
from torch import Tensor, nn

from drconv.distributed import all_reduce


class TopK:
    """Counts over any number of batches and ranks; each sample counts once."""

    def __init__(self, device: torch.device) -> None:
        # correct at 1, correct at 5, loss, samples
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits (B, classes), labels (B)."""
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = top == labels[:, None]
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        counts = torch.stack([hits[:, 0].sum(), hits.sum(), loss.double().sum(), hits.new_ones(len(labels)).sum()])
        self.sums += counts.to(self.sums)

    def compute(self) -> dict[str, float]:
        """Percent correct, mean loss and number of samples over all ranks."""
        top1, top5, loss, samples = all_reduce(self.sums.clone()).tolist()
        if samples == 0:
            return {"samples": 0}
        return {
            "top1": 100 * top1 / samples,
            "top5": 100 * top5 / samples,
            "loss": loss / samples,
            "samples": int(samples),
        }
