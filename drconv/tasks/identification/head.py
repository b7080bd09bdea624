"""The margin head: class weights split over the ranks, the softmax over all classes exact.

Every rank holds the weights of its own classes, their logits and their gradient. The embeddings of all ranks travel to
all (B x D numbers), then per sample the largest logit, the sum of exponentials and the true class's logit. The loss is
the mean over the global batch and the same number on every rank. It comes from log-sum-exp, without a floor.

Gradients: that of a slice of weights is complete on its rank. That of a rank's embeddings is summed over the ranks and
multiplied by their number, because the data-parallel wrapper of the backbone divides by it later. This happens in
``_Gather`` and nowhere else.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from drconv import distributed
from drconv.errors import DataError
from drconv.tasks.identification.margins import apply_margin


def slice_of(num_classes: int, rank: int, ranks: int) -> tuple[int, int]:
    """First class of a rank and the one behind its last; the first ranks hold one more where it does not divide."""
    least, more = divmod(num_classes, ranks)
    begin = rank * least + min(rank, more)
    return begin, begin + least + (rank < more)


class MarginHead(nn.Module):
    """Margin softmax over ``num_classes`` identities.

    The weights start normal with variance 1 / D, so rows of norm about 1 (as in the AM-Softmax authors' code). The
    whole matrix is drawn from the seed and then cut: the start does not depend on the number of ranks.

    Args:
        num_classes: C over all ranks.
        embedding: D, length of the embeddings.
        kind: am_softmax, cosface or arcface.
        scale: s on the cosines.
        margin: m, of the cosine or, for arcface, of the angle in radians.
        seed: of the class weights.
    """

    def __init__(self, num_classes: int, embedding: int, kind: str, scale: float, margin: float, seed: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.kind, self.scale, self.margin = kind, scale, margin
        self.begin, self.end = slice_of(num_classes, distributed.rank(), distributed.world_size())
        whole = torch.randn(num_classes, embedding, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(distributed.own_rows(whole) * embedding**-0.5)

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over all ranks' samples, and what it consists of.

        Everything is float32, also under autocast: half precision is coarser than a margin's effect near cos = 1.

        Args:
            embeddings: of this rank (b, D), not normalised; b may differ between ranks.
            labels: integers (b,) below ``num_classes``.

        Returns:
            The mean loss, a scalar; and ``top1`` (percent, without the margin), ``target_cosine`` and
            ``other_cosine`` (of the nearest wrong class), means over the global batch.

        Raises:
            DataError: labels are not integers, or out of range (looked at where they are on the CPU).
        """
        _check_labels(labels, self.num_classes)
        with torch.autocast(embeddings.device.type, enabled=False):
            gathered, targets = _gather(embeddings.float(), labels.to(embeddings.device))
            cosine = nn.functional.normalize(gathered) @ nn.functional.normalize(self.weight.float()).T
            own = (targets >= self.begin) & (targets < self.end)
            rows = own.nonzero().flatten()
            columns = targets[rows] - self.begin
            marked = apply_margin(cosine[rows, columns], self.margin, self.kind)
            logits = self.scale * cosine.index_put((rows, columns), marked)
            loss = _SplitCrossEntropy.apply(logits, rows, columns).mean()
            with torch.no_grad():
                watched = self._watch(cosine.detach(), rows, columns)
        return loss, watched

    def _watch(self, cosine: Tensor, rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
        target = cosine.new_zeros(len(cosine))
        target[rows] = cosine[rows, columns]
        others = cosine.index_put((rows, columns), cosine.new_full((), -torch.inf))
        distributed.all_reduce(target)
        other = distributed.all_reduce(_row_max(others), "max")
        found = {"top1": 100 * (target > other).float().mean(), "target_cosine": target.mean()}
        return found if self.num_classes == 1 else {**found, "other_cosine": other.mean()}


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels must be integers, found {labels.dtype}")
    if labels.device.type == "cpu" and len(labels):
        least, most = labels.min().item(), labels.max().item()
        if least < 0 or most >= num_classes:
            wrong = least if least < 0 else most
            raise DataError(f"a label is {wrong}, the head has the classes 0 to {num_classes - 1}; check data.root")


def _row_max(values: Tensor) -> Tensor:
    """Largest value of each row; -inf where a rank has no class."""
    return values.amax(1) if values.shape[1] else values.new_full((len(values),), -torch.inf)


def _gather(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """All ranks' embeddings and labels in the order of the ranks."""
    if distributed.world_size() == 1:
        return embeddings, labels.long()
    return _Gather.apply(embeddings), distributed.all_gather_rows(labels.long())


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradient is summed over the ranks and multiplied by their number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = distributed.all_gather_tensors(values)
        ctx.counts = [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = distributed.all_reduce(gradient.clone())
        return total.split(ctx.counts)[distributed.rank()] * len(ctx.counts)


class _SplitCrossEntropy(torch.autograd.Function):
    """Cross-entropy (B,) of logits (B, C_rank) whose columns are spread over the ranks.

    ``rows`` and ``columns`` are the places of the true classes that this rank has.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        most = distributed.all_reduce(_row_max(logits), "max")
        target = logits.new_zeros(len(logits))
        target[rows] = logits[rows, columns]
        distributed.all_reduce(target)
        probabilities = (logits - most[:, None]).exp_()
        total = distributed.all_reduce(probabilities.sum(1))
        ctx.save_for_backward(probabilities.div_(total[:, None]), rows, columns)
        return most + total.log() - target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        probabilities, rows, columns = ctx.saved_tensors
        result = probabilities * gradient[:, None]
        result[rows, columns] -= gradient[rows]
        return result, None, None
