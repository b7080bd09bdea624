"""Top-1 and top-5 accuracy and the mean cross-entropy of a classifier."""

import torch
from torch import Tensor, nn

from drconv.distributed import all_reduce


class TopK:
    """Counts over any number of batches and ranks; each sample counts once.

    Args:
        device: where the batches are.
        skipping: whether broken pictures are left out; ``compute()`` then says how many.
    """

    def __init__(self, device: torch.device, skipping: bool = False) -> None:
        # correct at 1, correct at 5, loss, samples, skipped
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.skipping = skipping

    def update(self, logits: Tensor, labels: Tensor, skipped: int | Tensor = 0) -> None:
        """Adds a batch: logits (B, classes), labels (B), and the number of pictures that were left out of it."""
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = top == labels[:, None]
        loss = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        counts = torch.stack([hits[:, 0].sum(), hits.sum(), loss.double().sum(), hits.new_ones(len(labels)).sum()])
        self.sums[:4] += counts.to(self.sums)
        self.sums[4] += skipped

    def compute(self) -> dict[str, float]:
        """Percent correct, mean loss and number of samples over all ranks."""
        top1, top5, loss, samples, skipped = all_reduce(self.sums.clone()).tolist()
        counts: dict[str, float] = {"samples": int(samples)}
        if self.skipping:
            counts["skipped"] = int(skipped)
        if samples == 0:
            return counts
        return {"top1": 100 * top1 / samples, "top5": 100 * top5 / samples, "loss": loss / samples, **counts}
